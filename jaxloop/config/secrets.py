"""Secrets do not leave the process: what looks like one is blanked when shown.

By the name of the field (`api_key`, `hf_token`; not `max_new_tokens` or `eos_token`)
and by the form of the value (tokens of well-known services, passwords inside URLs).
"""

import re
from collections.abc import Sequence
from typing import Any

REDACTED = "<redacted>"

_SECRET_NAME = re.compile(
    r"(^|[_-])(secrets?|passwords?|passwd|passphrase|credentials?"
    r"|(api|access|private|secret|signing)_?keys?"
    r"|(auth|access|api|bearer|hf|hub|github|wandb|session|refresh)_?tokens?)$|^token$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bAKIA[A-Z0-9]{16}\b|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def redact(path: str, value: Any) -> Any:
    """The value, or `<redacted>` in place of a text that the last part of the dotted
    `path` or its own form gives away as secret; tuples and mappings are looked into.
    Other types pass unchanged."""
    if type(value) in (tuple, list):
        return type(value)(redact(path, item) for item in value)
    if isinstance(value, dict):
        return {key: redact(str(key), item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value and _SECRET_NAME.search(path.rsplit(".", 1)[-1]):
        return REDACTED
    return _SECRET_TEXT.sub(REDACTED, value)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """A command line to write down: `--a.api_key X` and `a.api_key=X` are blanked."""
    shown, name = [], ""
    for token in argv:
        key, equals, value = token.partition("=")
        if equals:
            shown.append(f"{key}={redact(key.lstrip('-'), value)}")
        else:
            shown.append(redact(name, token))
        name = key.lstrip("-") if token.startswith("--") and not equals else ""
    return shown
