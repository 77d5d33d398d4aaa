"""Judge texts -> numbers: what a judgement says of each rollout that it was shown.

A parser is a frozen dataclass, called with the judge's text and how many rollouts the
judge was shown. It gives one finite number for each, in that order, where the text ends
with its verdict and holds no other; otherwise None: invalid, which is not a score of 0.
A number of rollouts that a parser cannot speak of is a ValueError whatever the text, so
`parser("", shown)` finds that out before a run.

Numbers are written in the digits 0-9, at most 9 before and after the point.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from jaxloop.scoring.answers import compiled

Parser = Callable[[str, int], tuple[float, ...] | None]

_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?")
_MARKUP = str.maketrans(dict.fromkeys("*`#>", " "))
_ENDING = " \t\n*_`.!"  # what may stand behind a verdict


def after_thought(text: str, marker: str) -> str | None:
    """What follows the last `marker` (an end of thought, such as `</think>`); None
    where it does not occur: the thought was never finished. All of it for ""."""
    if not marker:
        return text
    _, found, rest = text.rpartition(marker)
    return rest if found else None


def plain_line(line: str) -> str:
    """The line without marks of emphasis, headings, quotations and bullets around its
    words, and with single spaces."""
    words = " ".join(line.translate(_MARKUP).split())
    return words.removeprefix("- ").lstrip("•_ ").rstrip("_.! ")


@dataclass(frozen=True)
class Points:
    """The total of an additive rubric, on the last line: `Score: 4` -> (4.0,).

    Also `**Score:** 4/5`, `Final score: 4 out of 5 points.`, or the number on a line
    of its own below its label. In [low, high], a whole number of `step`s above low;
    what it is "out of" must be `high`. All such lines of the text must say the same:
    after `Score: 2`, a last `Score: 4` is invalid. For one rollout. The scale is that
    of Self-Rewarding Language Models (2401.10020).

    thought: what ends the judge's thought, which does not count; "" where it has none.
    """

    low: float = 0
    high: float = 5
    label: str = "score"
    step: float = 1
    thought: str = ""

    def __post_init__(self):
        _check_scale(self)
        _check_label(self, self.label)
        if not self.label:
            raise ValueError("Points: the label is empty; give one, such as 'score'")

    def __call__(self, text: str, shown: int) -> tuple[float, ...] | None:
        _speaks_of(self, 1, shown)
        said = _last_line(
            after_thought(text, self.thought),
            rf"{_labelled(self.label)}([^\s/]+)"
            r"(?:(?: ?/ ?| out of )([^\s/]+))?(?: points?)?",
            self._value,
        )
        return None if said is None else (said,)

    def _value(self, match: re.Match) -> float | None:
        total, out_of = match.groups()
        if out_of is not None and _number(out_of) != _exactly(self.high):
            return None
        return _on_scale(self, total)


@dataclass(frozen=True)
class YesNo:
    """A yes or no on the last line, reasoning first: `Verdict: yes` -> (1.0,).

    The label may be missing, the case is free. All such lines must say the same, as
    for `Points`. For one rollout.
    """

    label: str = "verdict"
    thought: str = ""

    def __post_init__(self):
        _check_label(self, self.label)

    def __call__(self, text: str, shown: int) -> tuple[float, ...] | None:
        _speaks_of(self, 1, shown)
        form = r"(yes|no)"
        if self.label:
            form = rf"(?:{_labelled(self.label)}(\S+)|{form})"
        said = _last_line(after_thought(text, self.thought), form, self._value)
        return None if said is None else (said,)

    def _value(self, match: re.Match) -> float | None:
        word = match[match.lastindex or 1]
        return {"yes": 1.0, "no": 0.0}.get(word.lower())


@dataclass(frozen=True)
class Tagged:
    """A number in tags for each rollout shown, the last thing that the judge writes.

    One rollout: `<score>7.5</score>`; two: `<score_A>7</score_A> <score_B>3</score_B>`;
    more: `<score_1>` and so on, which also serves for one and two. The last of each
    tag counts. They must stand in order, or a draft's B would go with the A of a final
    verdict that was cut off. In [low, high], whole numbers of `step`s above low; tenths
    from 0 to 10 as in J1 (2505.10320).
    """

    tag: str = "score"
    low: float = 0
    high: float = 10
    step: float = 0.1
    thought: str = ""

    def __post_init__(self):
        _check_scale(self)
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.tag):
            raise ValueError(
                f"Tagged: tag={self.tag!r} is not a word of letters, digits and _"
            )

    def __call__(self, text: str, shown: int) -> tuple[float, ...] | None:
        if shown < 1:
            raise ValueError(f"Tagged: the judge was shown {shown} rollouts")
        said = after_thought(text, self.thought)
        if said is None:
            return None
        form = rf"<({self.tag}(?:_[a-z0-9]+)?)>([^<]*)</([^<>]*)>"
        found = list(re.finditer(form, said, re.ASCII | re.IGNORECASE))[-shown:]
        if not found or found[-1].end() != len(said.rstrip(_ENDING)):
            return None
        opened = [match[1].lower() for match in found]
        closed = [match[3].lower() for match in found]
        if opened != closed or opened not in self._names(shown):
            return None
        values = [_on_scale(self, match[2].strip()) for match in found]
        return _all_known(values)

    def _names(self, shown: int) -> list[list[str]]:
        suffixes = [[f"_{place}" for place in range(1, shown + 1)]]
        suffixes += {1: [[""]], 2: [["_a", "_b"]]}.get(shown, [])
        return [[self.tag.lower() + end for end in ends] for ends in suffixes]


@dataclass(frozen=True)
class Verdict:
    """The better rollout's letter in double brackets at the end: `[[A]]` -> (1, 0).

    `[[B]]` -> (0, 1), a tie (`[[C]]`; tie="" allows none) -> (0.5, 0.5). One letter for
    each rollout shown. Two different letters anywhere in the text are invalid.
    """

    letters: str = "AB"
    tie: str = "C"
    thought: str = ""

    def __post_init__(self):
        names = (self.letters + self.tie).lower()
        if len(self.letters) < 2 or len(self.tie) > 1 or len(set(names)) != len(names):
            raise ValueError(
                f"Verdict: letters={self.letters!r}, tie={self.tie!r}: give two or "
                "more different letters and at most one other for a tie"
            )
        if not (names.isascii() and names.isalnum()):
            raise ValueError(
                f"Verdict: {self.letters + self.tie!r} are not all letters"
            )

    def __call__(self, text: str, shown: int) -> tuple[float, ...] | None:
        _speaks_of(self, len(self.letters), shown)
        said = after_thought(text, self.thought)
        if said is None:
            return None
        form = rf"\[\[\s*([{self.letters}{self.tie}])\s*\]\]"
        found = list(re.finditer(form, said, re.ASCII | re.IGNORECASE))
        if not found or found[-1].end() != len(said.rstrip(_ENDING)):
            return None
        kinds = {match[1].lower() for match in found}
        if len(kinds) > 1:
            return None
        if kinds == {self.tie.lower()}:
            return (1 / shown,) * shown
        return tuple(float({letter} == kinds) for letter in self.letters.lower())


@dataclass(frozen=True)
class Marked:
    r"""A user's own regular expression, which must match the end of the text.

    `Marked(r"\.(Y|N)$", {"Y": 1.0, "N": 0.0})` reads `...11.21x22.N`. A group for each
    rollout shown; named groups count in the order of their names. `values` says what a
    group's text stands for; without it the text must be a number. One group may speak
    of all rollouts: `{"A": (1.0, 0.0), "B": (0.0, 1.0)}`.

    White space at the end of the text is dropped first. All matches must say the same;
    a pattern that ends in `$` has only the one at the end. The pattern runs without a
    deadline: keep it free of nested repetitions. A broken one is a ValueError.
    """

    pattern: str
    values: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    thought: str = ""

    def __post_init__(self):
        groups, names = self._form.groups, self._form.groupindex
        if not groups:
            raise ValueError(
                f"Marked: the pattern {self.pattern!r} has no group; put brackets "
                "around what the verdict is"
            )
        if names and len(names) != groups:
            raise ValueError(
                f"Marked: of the groups of {self.pattern!r} some have names; name all "
                "of them or none, and write (?:...) for what is no verdict"
            )
        numbers = [_tuple(value) for value in self.values.values()]
        if not all(math.isfinite(number) for row in numbers for number in row):
            raise ValueError(f"Marked: values={dict(self.values)} are not all finite")
        if any(len(row) != len(numbers[0]) for row in numbers):
            raise ValueError(f"Marked: values={dict(self.values)} differ in length")
        if groups > 1 and numbers and len(numbers[0]) != 1:
            raise ValueError(
                f"Marked: {groups} groups, and values for several rollouts: "
                f"{dict(self.values)}"
            )

    @property
    def _form(self) -> re.Pattern:
        return compiled(self.pattern)

    def __call__(self, text: str, shown: int) -> tuple[float, ...] | None:
        rows = [_tuple(value) for value in self.values.values()]
        _speaks_of(self, self._form.groups * (len(rows[0]) if rows else 1), shown)
        said = after_thought(text, self.thought)
        if said is None:
            return None
        said = said.rstrip()
        found = list(self._form.finditer(said))
        if not found or found[-1].end() != len(said):
            return None
        read = {self._read(match) for match in found}
        return read.pop() if len(read) == 1 else None

    def _read(self, match: re.Match) -> tuple[float, ...] | None:
        names = sorted(match.re.groupindex) or range(1, match.re.groups + 1)
        texts = [match[name] for name in names]
        if self.values:
            rows = [self.values.get(text) for text in texts]
        else:
            rows = [None if text is None else _number(text) for text in texts]
        if None in rows:
            return None
        return tuple(float(number) for row in rows for number in _tuple(row))


def _last_line(
    text: str | None, form: str, value: Callable[[re.Match], float | None]
) -> float | None:
    """What the lines that have this form say, where the last of them ends the text and
    all say the same."""
    lines = [plain_line(line) for line in (text or "").splitlines()]
    said = "\n".join(line for line in lines if line)
    flags = re.ASCII | re.IGNORECASE | re.MULTILINE
    found = list(re.finditer(f"^{form}$", said, flags))
    if not found or found[-1].end() != len(said):
        return None
    values = {value(match) for match in found}
    return values.pop() if len(values) == 1 else None


def _labelled(label: str) -> str:
    return rf"(?:(?:final|total|overall) )*{re.escape(label)} ?:\s?"


def _number(text: str) -> Fraction | None:
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _exactly(number: float) -> Fraction:
    """0.1 as a tenth, not as the float that is nearest to it."""
    return Fraction(str(number))


def _on_scale(scale: Points | Tagged, text: str) -> float | None:
    value = _number(text)
    if value is None or not scale.low <= value <= scale.high:
        return None
    steps = (value - _exactly(scale.low)) / _exactly(scale.step)
    return float(value) if steps.denominator == 1 else None


def _check_scale(scale: Points | Tagged) -> None:
    low, high, step = scale.low, scale.high, scale.step
    if not (-math.inf < low < high < math.inf and 0 < step <= high - low):
        raise ValueError(
            f"{type(scale).__name__}: low={low}, high={high}, step={step}: low must be "
            "below high and the step above 0, no wider than both are apart"
        )


def _check_label(parser: Points | YesNo, label: str) -> None:
    if plain_line(label) != label or ":" in label:
        raise ValueError(
            f"{type(parser).__name__}: label={label!r} must be words without a colon, "
            "marks of emphasis or space around them"
        )


def _speaks_of(parser: Parser, number: int, shown: int) -> None:
    if number != shown:
        raise ValueError(
            f"{type(parser).__name__} speaks of {number} rollout(s), and the judge is "
            f"shown {shown}"
        )


def _all_known(values: list[float | None]) -> tuple[float, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)
