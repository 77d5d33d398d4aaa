"""Configurations: frozen dataclasses, made by Python files, changed by flags.

`load_config` runs a file's `get_config`; `apply_overrides` writes `a.b=3` into the
result; `describe` and `format_help` say what there is; `to_json` and `diff` record and
compare. Importing this loads no JAX.
"""

from jaxloop.config.compare import ABSENT, changed_from, diff, format_diff
from jaxloop.config.errors import ConfigError
from jaxloop.config.fields import Field, describe, type_problems
from jaxloop.config.help import format_help
from jaxloop.config.loading import load_config, unknown_variant
from jaxloop.config.overrides import apply_overrides, nearest_names, split_items
from jaxloop.config.secrets import redact, redact_argv
from jaxloop.config.serialise import source_sha256, to_json
from jaxloop.config.sweep import expand_sweep

__all__ = [
    "ABSENT",
    "ConfigError",
    "Field",
    "apply_overrides",
    "changed_from",
    "describe",
    "diff",
    "expand_sweep",
    "format_diff",
    "format_help",
    "load_config",
    "nearest_names",
    "redact",
    "redact_argv",
    "source_sha256",
    "split_items",
    "to_json",
    "type_problems",
    "unknown_variant",
]
