"""jaxloop: language models that improve themselves, in JAX."""

__version__ = "0.1.0"
