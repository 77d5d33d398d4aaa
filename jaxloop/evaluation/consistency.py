"""What a judge says of both orders of a pair, or of both completions of one.

Functions of scored judge prompts, for `Evaluation.summaries`. The two prompts of a pair
share a value in the column `pair`, and the i-th judgement of one goes with the i-th of
the other, as in training (`JointOrder`). A pair of which only one prompt is there is
left out; without any there are no numbers.
"""

from collections.abc import Iterator, Sequence

from jaxloop.records import Score, Scored


def order_consistency(scored: Sequence[Scored]) -> dict[str, float]:
    """Of pairs judged in both orders, scored by `LabelMatch`:

    - `consistent_accuracy`: both judgements name the better completion;
    - `flips`: they do not name the same one. A tie is the same only as a tie, and a
      judgement without a verdict names nothing: with one, the pair counts as flipped.

    What is left of 1 is consistently wrong, or tied. J1 (arXiv 2505.10320) reports
    both.
    """
    right, flipped = [], []
    for one, two in _pairs(scored):
        for first, second in zip(one.scores, two.scores, strict=True):
            named = _named(one, first), _named(two, second)
            right.append(named == ("better", "better"))
            flipped.append(None in named or named[0] != named[1])
    if not right:
        return {}
    return {
        "consistent_accuracy": sum(right) / len(right),
        "flips": sum(flipped) / len(flipped),
    }


def ranking_accuracy(scored: Sequence[Scored]) -> dict[str, float]:
    """Of pairs whose completions are scored one by one (`Said`): `ranking_accuracy`,
    the better one got the higher score, and `ties`, both got the same."""
    right, tied = [], []
    for one, two in _pairs(scored):
        better, worse = (one, two) if one.prompt.columns["better"] else (two, one)
        for high, low in zip(better.scores, worse.scores, strict=True):
            b, w = high.value, low.value
            right.append(b is not None and w is not None and b > w)
            tied.append(b is not None and b == w)
    if not right:
        return {}
    return {
        "ranking_accuracy": sum(right) / len(right),
        "ties": sum(tied) / len(tied),
    }


def _pairs(scored: Sequence[Scored]) -> Iterator[tuple[Scored, Scored]]:
    """Both prompts of each pair."""
    waiting: dict[str, Scored] = {}
    for row in scored:
        name = str(row.prompt.columns["pair"])
        if name in waiting:
            yield waiting.pop(name), row
        else:
            waiting[name] = row


def _named(row: Scored, score: Score) -> str | None:
    """Which completion a judgement names, whatever its place: "better", "worse" or
    "tie"; None where it has no verdict."""
    if score.answer not in ("A", "B"):
        return score.answer
    return "better" if score.answer == row.prompt.columns["label"] else "worse"
