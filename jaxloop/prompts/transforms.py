"""Demonstrations made into others: reversed, conditioned, with repeats to unlearn.

Pure functions on texts, token ids and `Demonstration`s; what is random takes a
generator. `Reversed` (`jaxloop.prompts.reversed`) puts the reversals into a data set.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from jaxloop.records import Demonstration

Ids = tuple[int, ...]
Span = tuple[int, int]
"""[start, end)."""


def reverse_tokens(ids: Sequence[int]) -> Ids:
    """Token reversal: the last token first. Twice is what it was.

    Golovneva et al. 2024 (arXiv 2403.13799). Breaks names of several tokens.
    """
    return tuple(reversed(ids))


def reverse_segments(
    ids: Sequence[int],
    rng: np.random.Generator,
    *,
    longest: int = 25,
    marker: Sequence[int] = (),
) -> Ids:
    """Segments of 1 to `longest` tokens, each in its order, the last segment first.

    `marker` goes between two segments. Golovneva et al. 2024 (arXiv 2403.13799),
    "rand"; 25 and a marker are theirs (as recalled, not checked against the paper).
    Wants no names to be found, once `longest` is no less than a name.
    """
    segments, start = [], 0
    while start < len(ids):
        end = start + int(rng.integers(1, longest + 1))
        segments.append(ids[start:end])
        start = end
    joined = list(itertools.chain(*((*s, *marker) for s in reversed(segments))))
    return tuple(joined[: len(joined) - len(marker)])


def reverse_words(text: str) -> str:
    """Word reversal: split at single spaces, the last word first. Twice is what it was.

    Golovneva et al. 2024 (arXiv 2403.13799).
    """
    return " ".join(reversed(text.split(" ")))


def reverse_entities(text: str, spans: Iterable[Span]) -> str:
    """Word reversal that leaves names in their order.

    spans: [start, end) of each name in `text`, in characters, by whatever finds names;
    a name is as many whole words as it touches. ValueError where two share a word.
    Golovneva et al. 2024 (arXiv 2403.13799).
    """
    words = text.split(" ")
    starts = np.cumsum([0] + [len(word) + 1 for word in words])
    name_of = [-1 - i for i in range(len(words))]  # each word is a unit of its own
    for name, (start, end) in enumerate(spans):
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = min(int(np.searchsorted(starts, end, side="left")), len(words))
        if any(of >= 0 for of in name_of[first:last]):
            raise ValueError(f"the name {text[start:end]!r} overlaps another one")
        name_of[first:last] = [name] * (last - first)
    pairs = zip(name_of, words, strict=True)
    units = [
        [w for _, w in unit] for _, unit in itertools.groupby(pairs, lambda p: p[0])
    ]
    return " ".join(itertools.chain(*reversed(units)))


def with_reversed(
    demonstrations: Iterable[Demonstration],
    reverse: Callable[[Ids], Ids],
    *,
    fixed: Collection[int] = (),
) -> list[Demonstration]:
    """Each sequence, and behind it its reverse, for the ordinary loss on both.

    `fixed` ids stay where they are at both ends (beginning and end of sequence). A
    reversed sequence has no prompt: all of it is trained on.
    """
    made = []
    for demonstration in demonstrations:
        front, inner, back = _between(demonstration.token_ids, fixed)
        ids = (*front, *reverse(inner), *back)
        name, mask = f"{demonstration.id}:reversed", (1,) * len(ids)
        made += [
            demonstration,
            Demonstration(name, ids, mask, demonstration.weight),
        ]
    return made


def _between(ids: Ids, fixed: Collection[int]) -> tuple[Ids, Ids, Ids]:
    """What stands in front, inside and behind, the ends being of `fixed`."""
    start = next((i for i, x in enumerate(ids) if x not in fixed), len(ids))
    last = next((i for i, x in enumerate(ids[::-1]) if x not in fixed), 0)
    end = max(len(ids) - last, start)
    return ids[:start], ids[start:end], ids[end:]


def with_control(
    demonstration: Demonstration,
    control: Sequence[int],
    *,
    before: Literal["all", "completion"] = "all",
    fixed: Collection[int] = (),
) -> Demonstration:
    """The same behind control tokens, which are given and not trained on.

    before="all": in front of everything but leading `fixed` ids; "completion": right
    before the first token that is trained on. Asked with the control token of the best,
    the model later answers as the best of its data did (CTRL, Keskar et al. 2019, arXiv
    1909.05858; Quark, Lu et al. 2022, arXiv 2205.13636; as recalled).
    """
    ids, mask = demonstration.token_ids, demonstration.mask
    if before == "completion":
        at = mask.index(1) if 1 in mask else len(mask)
    else:
        at = len(_between(ids, fixed)[0])

    def inserted(values: tuple, fill) -> tuple:
        return (*values[:at], *(fill,) * len(control), *values[at:]) if values else ()

    return replace(
        demonstration,
        token_ids=(*ids[:at], *control, *ids[at:]),
        mask=inserted(mask, 0),
        token_weights=inserted(demonstration.token_weights, 1.0),
        repeats=_moved(inserted(demonstration.repeats, 0), at, len(control)),
    )


def _moved(repeats: tuple[int, ...], at: int, count: int) -> tuple[int, ...]:
    """Distances that reach back over `count` new tokens at `at`."""
    return tuple(
        back + count if i >= at + count and back > i - at - count else back
        for i, back in enumerate(repeats)
    )


def quantile_bins(scores: Sequence[float], bins: int) -> list[int]:
    """The bin of each score, from 0 (worst) to bins - 1, as equally filled as can be;
    equal scores share a bin. For a control token a bin (Quark)."""
    rank = np.searchsorted(np.sort(scores), scores, side="left")
    return (rank * bins // max(len(scores), 1)).tolist()


def repeat_span(demonstration: Demonstration, span: Span, times: int) -> Demonstration:
    """The sequence up to the end of `span`, then the span again, `times` times.

    Tokens of each repeat know how far back the one before stands (`repeats`), which
    turns on `sft.anti_repetition` for them. For DITTO's data (Xu et al. 2022, arXiv
    2206.02369; as recalled): a sentence picked at random from a text.
    """
    start, end = span
    ids, weights = demonstration.token_ids, demonstration.token_weights
    if not 0 <= start < end <= len(ids):
        raise ValueError(f"the span {span} is not within {len(ids)} tokens")
    length = (end - start) * times
    return replace(
        demonstration,
        token_ids=ids[:end] + ids[start:end] * times,
        mask=demonstration.mask[:end] + (1,) * length,
        token_weights=weights and weights[:end] + weights[start:end] * times,
        repeats=(0,) * end + (end - start,) * length,
    )


def sentences(ids: Sequence[int], ends: Collection[int]) -> list[Span]:
    """The spans that end with a token of `ends`, or with the sequence."""
    stops = [i + 1 for i, x in enumerate(ids) if x in ends]
    stops += [len(ids)] * (not stops or stops[-1] < len(ids))
    return [s for s in itertools.pairwise([0, *stops]) if s[0] < s[1]]


def avoid_repeated_ngrams(
    demonstration: Demonstration, n: int, weight: float = -1.0
) -> Demonstration:
    """`weight` (below 0: avoided) on each trained token that ends an n-gram which the
    sequence already has; tokens keep their weight elsewhere.

    For a model's own samples: sequence-level unlikelihood (Welleck et al. 2019, arXiv
    1908.04319; as recalled).
    """
    ids, seen = demonstration.token_ids, set()
    weights = list(demonstration.token_weights or (1.0,) * len(ids))
    for end in range(n, len(ids) + 1):
        ngram = ids[end - n : end]
        if ngram in seen and demonstration.mask[end - 1]:
            weights[end - 1] = weight
        seen.add(ngram)
    return replace(demonstration, token_weights=tuple(weights))
