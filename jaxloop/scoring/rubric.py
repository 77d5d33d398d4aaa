"""What a judge is told: templates with plain `{fields}`, packaged or a user's own."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from string import Formatter

FOLDER = Path(__file__).with_name("rubrics")


def template_names() -> list[str]:
    """The packaged templates."""
    return sorted(file.stem for file in FOLDER.glob("*.txt"))


def load_template(name_or_path: str) -> str:
    """The packaged template of that name, else the text of the file at that path,
    without the space around it. ValueError where there is neither."""
    names = template_names()
    packaged = name_or_path in names
    file = FOLDER / f"{name_or_path}.txt" if packaged else Path(name_or_path)
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        nearest = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f"the nearest is {nearest[0]!r}; " if nearest else ""
        raise ValueError(
            f"judge template {name_or_path!r}: {error.strerror}; {hint}"
            f"give the path of a file or one of {', '.join(names)}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"judge template {name_or_path!r}: not UTF-8: {error}"
        ) from None
    if not text:
        raise ValueError(f"judge template {name_or_path!r} is empty")
    return text


def template_problems(template: str, needed: Collection[str]) -> list[str]:
    """What is wrong with a template that is given exactly the fields `needed`: those
    that it lacks, those that nobody fills in, and braces that are no plain field."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return [f"{error}; a brace itself is written {{{{ or }}}}"]
    problems = []
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion or not name.isidentifier()):
            problems.append(
                f"{{{name}}} is not the plain name of a field, like {{question}}; a "
                "brace itself is written {{ or }}"
            )
    used = {name for _, name, _, _ in parts if name and name.isidentifier()}
    problems += [
        f"the field {{{name}}} is missing" for name in sorted({*needed} - used)
    ]
    known = ", ".join(f"{{{name}}}" for name in sorted(needed))
    problems += [
        f"the field {{{name}}} is unknown; here there are {known}"
        for name in sorted(used - {*needed})
    ]
    return problems


def filled(template: str, fields: Mapping[str, str]) -> str:
    """The template with each `{name}` replaced by its text, whose own braces stay as
    they are. ValueError for a field that is not in `fields`; more may be given."""
    out = []
    for literal, name, _, _ in Formatter().parse(template):
        out.append(literal)
        if name is None:
            continue
        if name not in fields:
            raise ValueError(f"judge template: nothing is given for {{{name}}}")
        out.append(fields[name])
    return "".join(out)
