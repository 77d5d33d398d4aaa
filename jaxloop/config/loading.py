"""Config files: Python files with `get_config(variant=None)`, loaded by path.

A config file is code and runs with the user's rights; it is read from the local disk
only.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxloop.config.errors import ConfigError
from jaxloop.config.fields import is_part


def load_config(spec: str) -> Any:
    """The configuration that `configs/x.py` or `configs/x.py:variant` describes.

    The folder above the file's joins `sys.path`, so that config files import one
    another (`from configs import x`). ConfigError names a missing file or `get_config`,
    an unknown variant, and whatever the file raises, with the file and line.
    """
    path, variant = split_spec(spec)
    module = _import_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path}: defines no get_config(variant=None)")
    arguments = () if variant is None else (variant,)
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        if variant is not None:
            raise ConfigError(f"{path}: has no variants, so no {variant!r}") from None
        raise ConfigError(f"{path}: write get_config(variant=None)") from None
    try:
        config = get_config(*arguments)
    except Exception as error:
        raise ConfigError(_what_failed(path, error)) from error
    if not is_part(config):
        kind = type(config).__name__
        raise ConfigError(f"{path}: get_config returned a {kind}, not a configuration")
    return config


def unknown_variant(variant: str | None, known: Iterable[str | None]) -> ValueError:
    """What `get_config` raises for a variant it does not know: names the known ones.

    None among the known ones stands for no variant; as `variant`, for one not given.
    """
    names = [name for name in known if name is not None]
    if variant is None:
        return ValueError(f"name a variant after a colon (known: {', '.join(names)})")
    close = difflib.get_close_matches(variant, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown variant {variant!r} (known: {', '.join(names)}){hint}")


def split_spec(spec: str) -> tuple[Path, str | None]:
    """(path of an existing file, variant or None) of `path.py[:variant]`."""
    if "://" in spec:
        raise ConfigError(f"{spec}: config files are code; copy it to the local disk")
    path, variant = Path(spec), None
    if not path.is_file() and ":" in spec:
        name, _, variant = spec.rpartition(":")
        path = Path(name)
        if not variant:
            raise ConfigError(f"{spec}: write a variant after the colon")
    if path.suffix == ".py" and path.is_file():
        return path, variant
    suffix = f":{variant}" if variant else ""
    if path.with_suffix(".py").is_file():
        hint = f"; did you mean {path.with_suffix('.py')}{suffix}?"
    else:
        siblings = [str(other) for other in path.parent.glob("*.py")]
        close = difflib.get_close_matches(str(path), siblings, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"there is no config file {path}{hint}")


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    root = str(path.parent.parent)
    if sys.path[:1] != [root]:  # in front: of two folders `configs` this one is meant
        sys.path[:] = [root, *(entry for entry in sys.path if entry != root)]
    importlib.invalidate_caches()
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(_what_failed(path, error)) from error
    return module


def _module_name(path: Path) -> str:
    """`folder.stem` where Python would import the file by that name, too.

    Then worker processes can import what the file defines, a config that imports
    another shares its classes, and names in a saved configuration do not depend
    on where the folder lies. Where another package has that name: one of its own.
    """
    folder = path.parent.name
    try:
        package = importlib.util.find_spec(folder) if folder else None
    except ValueError:  # a module that was made without a spec
        package = None
    places = list(package.submodule_search_locations or ()) if package else []
    if str(path.parent) not in places:
        digest = sha256(str(path).encode()).hexdigest()[:12]
        return f"jaxloop_config_{digest}_{path.stem}"
    if package and package.origin is None:
        _forget_namesakes(path.parent)
    return f"{folder}.{path.stem}"


def _forget_namesakes(folder: Path) -> None:
    """Drops what an earlier load took from another folder of the same name.

    Only for folders without `__init__.py`, of which Python merges all on `sys.path`:
    `from configs import x` must give the x beside the file that asks for it.
    """
    for file in folder.glob("*.py"):
        name = f"{folder.name}.{file.stem}"
        known = getattr(sys.modules.get(name), "__file__", None)
        if known and Path(known) != file:
            del sys.modules[name]
            package = sys.modules.get(folder.name)
            if package and hasattr(package, file.stem):
                delattr(package, file.stem)


def _what_failed(path: Path, error: Exception) -> str:
    """`file:line: Error: message`, the line being the last one inside config files."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    folder = path.resolve().parent
    own = [frame for frame in frames if Path(frame.filename).parent == folder]
    at = own[-1] if own else frames[-1]
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    message = f"{at.filename}:{at.lineno}: {name}{error}"
    if frames[-1] != at:
        message += f" (raised in {frames[-1].filename}:{frames[-1].lineno})"
    return message
