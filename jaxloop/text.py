"""How alike two texts are: tokens, n-grams, longest common subsequence, ROUGE-L."""

import re
import unicodedata
from array import array
from collections.abc import Hashable, Sequence

import numpy as np

_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w+")
SLACK = 1e-9  # 0.7 * 10 is a little less than 7 in floats


def tokens(text: str) -> list[str]:
    """Words and marks, each mark by itself, regardless of case, spacing and Unicode
    form: texts with equal tokens are the same text. 2+3 and 2*3 are not."""
    return _TOKEN.findall(_plain(text))


def words(text: str) -> list[str]:
    """The words alone, regardless of case and punctuation."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def ngrams(items: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """All runs of n items; none where there are fewer."""
    return {tuple(items[i : i + n]) for i in range(len(items) - n + 1)}


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence.

    The row of the usual table is held as the bits of one integer, 0 where the row
    grows, after Hyyrö 2004 (bit-parallel LCS; as recalled, not checked against the
    paper): O(len(a) x len(b) / word size).
    """
    places: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def rouge_l(a: str, b: str) -> float:
    """2 LCS / (len(a) + len(b)) over `tokens`: 1 for the same text, 0 for nothing in
    common.

    ROUGE-L's F-measure (Lin 2004) with equal weights. Marks count as well, where Lin's
    script leaves them out.
    """
    return _rouge(tokens(a), tokens(b))


def _rouge(a: Sequence[str], b: Sequence[str]) -> float:
    total = len(a) + len(b)
    return 2 * lcs_length(a, b) / total if total else 1.0


class TextPool:
    """Texts that a new one is compared with.

    Which of them can be near is read from an index of tokens: the common subsequence of
    two texts is no longer than the tokens they share, so most of a pool is never
    compared.
    """

    def __init__(self, texts: Sequence[str] = ()):
        self._texts: list[list[str]] = []
        self._lengths = array("i")
        self._holders: dict[tuple[str, int], array] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        found = tokens(text)
        for numbered in _numbered(found):
            self._holders.setdefault(numbered, array("i")).append(len(self))
        self._lengths.append(len(found))
        self._texts.append(found)

    def find(self, text: str, threshold: float) -> int | None:
        """The number of the first text, in the order added, whose `rouge_l` with this
        one is at least `threshold` (above 0), or None."""
        if not threshold > 0:
            raise ValueError(f"TextPool.find: threshold = {threshold} must be above 0")
        found = tokens(text)
        for number in self._near(found, threshold):
            if _rouge(self._texts[number], found) >= threshold - SLACK:
                return int(number)
        return None

    def _near(self, found: list[str], threshold: float) -> np.ndarray:
        """Those that share enough tokens, in order."""
        shared_N = np.zeros(len(self), np.int32)
        for numbered in _numbered(found):
            if numbered in self._holders:
                shared_N[np.frombuffer(self._holders[numbered], np.intc)] += 1
        total_N = np.array(self._lengths, np.intc) + len(found)
        return np.flatnonzero(2 * shared_N >= (threshold - SLACK) * total_N)


def _numbered(found: Sequence[str]) -> list[tuple[str, int]]:
    """Tokens with how often each came before, so that a set of them counts repeats."""
    seen: dict[str, int] = {}
    numbered = []
    for token in found:
        numbered.append((token, seen.get(token, 0)))
        seen[token] = seen.get(token, 0) + 1
    return numbered
