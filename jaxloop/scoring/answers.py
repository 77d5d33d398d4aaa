"""Final answers: finding one in a text, and when two are the same.

An extractor is a frozen dataclass called with a text; it gives the answer as written,
or None. `canonical` maps all spellings of one answer to one string: votes are counted,
and numbers compared, on that.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Extractor = Callable[[str], str | None]

LONGEST_NUMBER = 100  # characters; longer ones are text (int() is quadratic in digits)

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
# A minus is a sign only where no operand stands before it: 16-3 ends in 3, not -3.
_SIGN = r"(?:(?<![\w)\]])[-−])?"
_NUMBER = re.compile(
    rf"{_SIGN}[$€£]?(?:{_DIGITS}(?:\.[0-9]+|/[0-9]+)?|(?<![0-9])\.[0-9]+)"
)
_WHOLE_NUMBER = re.compile(
    r"[$€£]?([-−+]?)[$€£]?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(\.[0-9]*)?(?:/([0-9]+))?"
    r"\s?(?:\\?%)?\.?"
)
_STRICT = re.compile(r"#### (-?[0-9.,]+)")


def number(text: str) -> Fraction | None:
    """The exact number that the whole of `text` spells, else None.

    Understood: signs, thousands separators, decimals, a fraction of two integers, a
    currency sign before and a percent sign or full stop after (both ignored: 50% is
    50).
    """
    match = _WHOLE_NUMBER.fullmatch(text.strip())
    if match is None or len(text) > LONGEST_NUMBER:
        return None
    sign, whole, point, below = match.groups()
    digits = whole.replace(",", "") + (point or "").rstrip(".")
    if digits in ("", ".") or (below and (point or int(below) == 0)):
        return None
    value = Fraction(digits) / int(below or 1)
    return value if sign in ("", "+") else -value


def canonical(answer: str) -> str:
    """One spelling for all equal answers.

    Numbers: shortest decimal, or a reduced fraction where the decimal does not end.
    Other text: lower case, single spaces, no full stop at the end.
    """
    value = number(answer)
    if value is not None:
        return _spell(value)
    return " ".join(answer.casefold().split()).rstrip(". ")


def _spell(value: Fraction) -> str:
    places, rest = 0, value.denominator
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest, count = rest // factor, count + 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator)
    digits = digits.zfill(places + 1)
    sign = "-" if value < 0 else ""
    if places == 0:
        return sign + digits
    return f"{sign}{digits[:-places]}.{digits[-places:]}"


@dataclass(frozen=True)
class WholeText:
    """All of the text, without the space around it."""

    def __call__(self, text: str) -> str | None:
        return text.strip() or None


@dataclass(frozen=True)
class After:
    """What follows the last `marker`, to the end of its line."""

    marker: str = "#"

    def __post_init__(self):
        if not self.marker:
            raise ValueError("After: the marker is empty; give one, such as '#'")

    def __call__(self, text: str) -> str | None:
        _, found, rest = text.rpartition(self.marker)
        if not found:
            return None
        return rest.partition("\n")[0].strip() or None


@dataclass(frozen=True)
class Hashes:
    """GSM8K's strict form: the number after the first `#### ` (Cobbe et al. 2021).

    As in the data set's own code: one space, digits, points and commas; commas go.
    """

    def __call__(self, text: str) -> str | None:
        match = _STRICT.search(text)
        return match[1].replace(",", "").rstrip(".") or None if match else None


@dataclass(frozen=True)
class LastNumber:
    """The last number of the text, wherever it stands (GSM8K's flexible form)."""

    def __call__(self, text: str) -> str | None:
        found = _NUMBER.findall(text)
        return found[-1] if found else None


@dataclass(frozen=True)
class Letter:
    """A multiple-choice letter: after the last "answer is" or "answer:", else the last
    in brackets, else one that opens or fills a line ("B. because ..."). A bare A in a
    sentence is an article, not an answer."""

    letters: str = "ABCDE"

    def __post_init__(self):
        if not self.letters:
            raise ValueError("Letter: letters is empty; give them, such as 'ABCD'")

    def __call__(self, text: str) -> str | None:
        one = f"[{re.escape(self.letters)}]"
        forms = (
            rf"(?i:answer)\**(?:\s+(?i:is)\b)?\s*:?[\s*]*\(?({one})(?![\w'’])",
            rf"\(({one})\)",
            rf"^[ \t]*\**({one})(?:\**[.):]|\**[ \t]*$)",
        )
        for form in forms:
            found = re.findall(form, text, re.MULTILINE)
            if found:
                return found[-1]
        return None


@dataclass(frozen=True)
class Regex:
    """The last match of `pattern`: its first group, or all of it where it has none.

    The pattern runs in this process without a deadline: keep it free of nested
    repetitions, or score with a `Function`, which has one.
    """

    pattern: str

    def __post_init__(self):
        compiled(self.pattern)

    def __call__(self, text: str) -> str | None:
        found = list(compiled(self.pattern).finditer(text))
        if not found:
            return None
        return (found[-1][1] if found[-1].re.groups else found[-1][0]) or None


def compiled(pattern: str) -> re.Pattern:
    """The pattern, `.` matching line ends too; a broken one is a ValueError."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"regular expression {pattern!r}: {error}") from None
