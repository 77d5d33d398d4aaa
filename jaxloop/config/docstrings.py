"""The meaning of a field: the string literal under it in the class's source."""

import ast
import dataclasses
import inspect
import itertools


def field_help(cls: type) -> dict[str, str]:
    """The string literal under each field, by name, base classes included.

    Classes whose source is not to be had (made at run time) have none.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _literals_under_fields(base)
    return found


def _literals_under_fields(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
        if source[:1].isspace():  # a class inside something: keep its indentation legal
            source = "if True:\n" + source
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return {}
    body = next((n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef)), [])
    found = {}
    for statement, below in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(below, ast.Expr):
            continue
        name, text = statement.target, below.value
        if not isinstance(name, ast.Name) or not isinstance(text, ast.Constant):
            continue
        if isinstance(text.value, str):
            found[name.id] = " ".join(text.value.split())
    return found
