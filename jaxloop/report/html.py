"""HTML that is escaped by its type.

`el` builds elements; a child or attribute that is a plain `str` is escaped, whatever it
holds, and only `Html` passes as it is. Nothing else in the report writes markup.
"""

import html
import re
from typing import Any

# Not allowed in HTML, or (surrogates) in UTF-8: shown as a replacement character.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
)
_VOID = {"br", "input", "meta", "hr", "circle", "line", "path", "polyline", "rect"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: Any) -> Html:
    """`text` as HTML text or attribute value."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def join(*children: Any) -> Html:
    """Children one after another, in lists too; None and False are left out."""
    parts = []
    for child in children:
        if child is None or child is False:
            continue
        parts.append(join(*child) if isinstance(child, list | tuple) else escape(child))
    return Html("".join(parts))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """`<tag attribute="value">children</tag>`.

    `class_` is class, other underscores are hyphens; True is an attribute without
    a value, None and False are none. Styles and handlers are not for attributes: the
    page's content security policy would refuse them.
    """
    words = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        assert not re.fullmatch("style|on.*", name), name
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f'{name}="{escape(value)}"')
    opening = f"<{' '.join(words)}>"
    if tag in _VOID and not children:
        # Self-closing: the same text is then valid inside SVG files too.
        return Html(opening[:-1] + "/>")
    return Html(f"{opening}{join(*children)}</{tag}>")
