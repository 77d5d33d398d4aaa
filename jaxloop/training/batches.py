"""From records to arrays: prompts on the left, completions on the right.

A row is [padding, prompt | completion, padding] with the border at the same column
`start` in every row, so that a loss looks at a static slice. Padding has segment 0;
masks come from lengths, never from ids. Shapes come from short ladders, so that few are
compiled.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from jaxloop.losses.objective import Kind
from jaxloop.records import Group, Labelled, Pair, Prompt, Rollout

Batch = dict[str, np.ndarray]
Row = tuple[Prompt, Rollout]
Example = Pair | Labelled


def bucket(length: int, most: int) -> int:
    """The smallest of most/4, most/2, most (in whole eights) that holds `length`."""
    for part in (4, 2, 1):
        size = -(-most // (8 * part)) * 8
        if length <= size:
            return size
    raise ValueError(f"a length of {length} does not fit into {most} tokens")


@dataclass(frozen=True)
class Layout:
    """Columns of a batch: `prompt` on the left of the border, at most `completion`."""

    prompt: int
    completion: int

    @classmethod
    def holding(cls, prompt: int, completion: int) -> "Layout":
        """For prompts and completions of so many tokens at most."""
        return cls(bucket(prompt, prompt), bucket(completion, completion))

    @property
    def start(self) -> int:
        return self.prompt

    def width(self, rollouts: Sequence[Rollout]) -> int:
        longest = max((len(r.token_ids) for r in rollouts), default=1)
        return bucket(longest, self.completion)


def longest_prompt(prompts: Iterable[Prompt]) -> int:
    """In tokens; 1 of none."""
    return max((len(prompt.token_ids) for prompt in prompts), default=1)


def longest(rows: Iterable[Row]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest completion; 1 of none."""
    rows = list(rows)
    completions = (len(rollout.token_ids) for _, rollout in rows)
    return longest_prompt(prompt for prompt, _ in rows), max(completions, default=1)


def rows(
    items: Sequence[Row | None],
    layout: Layout,
    pad_id: int,
    columns: int,
) -> Batch:
    """Token arrays of (prompt, completion) rows; None is a row of padding.

    tokens, positions, segments: int32 (B, T) with T = layout.prompt + columns.
    mask_BC: float32 (B, columns), 1 on completion tokens that are trained on (not on a
    tool's). sampler_logp_BC: float32, the sampler's untruncated log-probabilities, 0
    past the end.
    """
    B, P, T = len(items), layout.prompt, layout.prompt + columns
    tokens_BT = np.full((B, T), pad_id, np.int32)
    positions_BT = np.zeros((B, T), np.int32)
    segments_BT = np.zeros((B, T), np.int32)
    mask_BC = np.zeros((B, columns), np.float32)
    logp_BC = np.zeros((B, columns), np.float32)
    for b, item in enumerate(items):
        if item is None:
            continue
        prompt, rollout = item[0].token_ids, item[1]
        first, last = P - len(prompt), P + len(rollout.token_ids)
        tokens_BT[b, first:P] = prompt
        tokens_BT[b, P:last] = rollout.token_ids
        positions_BT[b, first:last] = np.arange(last - first)
        segments_BT[b, first:last] = 1
        mask_BC[b, : last - P] = rollout.mask
        if rollout.logps:  # pairs from a file have none
            logp_BC[b, : last - P] = rollout.logps
    return {
        "tokens_BT": tokens_BT,
        "positions_BT": positions_BT,
        "segments_BT": segments_BT,
        "mask_BC": mask_BC,
        "sampler_logp_BC": logp_BC,
    }


def tokens_of(batch: Batch) -> Batch:
    """What a model reads of a batch."""
    return {k: batch[k] for k in ("tokens_BT", "positions_BT", "segments_BT")}


def micro_batches(batch: Batch, accumulation: int) -> Batch:
    """(A * B, ...) to (A, B, ...)."""
    return {
        name: x.reshape(accumulation, -1, *x.shape[1:]) for name, x in batch.items()
    }


def example_rows(
    examples: Sequence[Example], *, mismatched: bool = False
) -> list[tuple[Row, ...]]:
    """The rows of each example: of a pair chosen and rejected; of a labelled completion
    its own and, `mismatched`, under its prompt the completion of the next example that
    has another prompt (KTO estimates a KL from those)."""
    made: list[tuple[Row, ...]] = []
    for i, example in enumerate(examples):
        prompt = example.prompt
        if isinstance(example, Pair):
            made.append(((prompt, example.chosen), (prompt, example.rejected)))
            continue
        rows = [(prompt, example.rollout)]
        if mismatched:
            after = (examples[(i + k) % len(examples)] for k in range(len(examples)))
            # By tokens: rows of a file may repeat a prompt under another id.
            others = (e for e in after if e.prompt.token_ids != prompt.token_ids)
            other = next(others, example)
            assert isinstance(other, Labelled), "pairs among labelled completions"
            rows.append((prompt, other.rollout))
        made.append(tuple(rows))
    return made


def example_batch(
    examples: Sequence[Example],
    rows_of_each: Sequence[tuple[Row, ...]],
    layout: Layout,
    pad_id: int,
    size: int,
    logps: Mapping[str, np.ndarray],
    *,
    kind: Kind,
    each: int = 2,
    edits: bool = False,
) -> Batch:
    """`size` examples as `each * size` rows, those of one example side by side.

    rows_of_each: `example_rows`. Rows beyond the examples are padding and not valid:
    they count for nothing. logps: float32 (examples, each, C) arrays by the name that
    they get in the batch. Pairs bring `margin_B`, the difference of their scores, and
    `target_B`, its logistic, and with `edits` where they differ, `edited_BC`; labelled
    completions `label_B`, `target_B` and `step_BC`.
    """
    assert kind in ("pairs", "labelled"), f"{kind} are no examples"
    items: list[Row | None] = [row for group in rows_of_each for row in group]
    width = layout.width([item[1] for item in items if item])
    items += [None] * (each * size - len(items))
    batch = rows(items, layout, pad_id, width)
    del batch["sampler_logp_BC"]  # of the sampling temperature, where these are at 1

    def column(values) -> np.ndarray:
        out_N = np.zeros(size, np.float32)
        out_N[: len(examples)] = values
        return np.repeat(out_N, each)

    batch["valid_B"] = column(1.0)
    batch["weight_B"] = column([example.weight for example in examples])
    if kind == "pairs":
        pairs = [example for example in examples if isinstance(example, Pair)]
        gaps = [pair.chosen_score - pair.rejected_score for pair in pairs]
        batch["margin_B"] = column(gaps)
        batch["target_B"] = column([1 / (1 + math.exp(-max(g, -80))) for g in gaps])
        if edits:
            batch["edited_BC"] = np.zeros_like(batch["mask_BC"])
            marks = (marks_C for pair in pairs for marks_C in edited_tokens(pair))
            for edited_C, marks_C in zip(batch["edited_BC"], marks, strict=False):
                edited_C[: len(marks_C)] = marks_C
    else:
        labelled = [example for example in examples if isinstance(example, Labelled)]
        labels = column([example.label for example in labelled])
        batch |= {"label_B": labels, "target_B": labels}
        batch["step_BC"] = np.full_like(batch["mask_BC"], np.nan)
        for i, example in enumerate(labelled):
            for end, label in example.steps:
                batch["step_BC"][each * i, end - 1] = label
    for name, logp_NRC in logps.items():
        batch[name] = np.zeros_like(batch["mask_BC"])
        kept = min(width, logp_NRC.shape[2])  # beyond the longest row all is masked
        flat = logp_NRC[:, :, :kept].reshape(-1, kept)
        batch[name][: len(flat), :kept] = flat
    return batch


def edited_tokens(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Of the chosen and of the rejected completion, bool by token: where it is not
    matched by the other one (Ratcliff and Obershelp's longest blocks)."""
    chosen, rejected = pair.chosen.token_ids, pair.rejected.token_ids
    edited = np.ones(len(chosen), bool), np.ones(len(rejected), bool)
    matcher = SequenceMatcher(None, chosen, rejected, autojunk=False)
    for block in matcher.get_matching_blocks():
        edited[0][block.a : block.a + block.size] = False
        edited[1][block.b : block.b + block.size] = False
    return edited


def group_batch(
    groups: Sequence[Group], layout: Layout, pad_id: int, size: int
) -> Batch:
    """All rollouts of all groups, padded with invalid rows up to `size` rows.

    Beside what `rows` gives: `drawn_logp_BC`, `advantage_B`, `opposed_B` (where groups
    have that), `reward_B` (NaN where unscored), `group_B` (the number of the group) and
    `truncated_B`.
    """
    items: list[Row | None] = [
        (group.prompt, rollout) for group in groups for rollout in group.rollouts
    ]
    width = layout.width([item[1] for item in items if item])
    count = len(items)
    items += [None] * (size - count)
    batch = rows(items, layout, pad_id, width)

    def column(values, fill: float = 0.0, dtype: str = "float32") -> np.ndarray:
        out_B = np.full(size, fill, dtype)
        out_B[:count] = values
        return out_B

    scores = [score.value for group in groups for score in group.scores]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    numbers = [i for i, group in enumerate(groups) for _ in group.rollouts]
    batch["drawn_logp_BC"] = np.zeros_like(batch["mask_BC"])
    for b, rollout in enumerate(rollouts):
        batch["drawn_logp_BC"][b, : len(rollout.drawn_logps)] = rollout.drawn_logps
    rewards = [math.nan if value is None else value for value in scores]
    if any(group.opposed for group in groups):
        batch["opposed_B"] = column([x for group in groups for x in group.opposed])
    return batch | {
        "valid_B": column(1.0),
        "advantage_B": column([a for group in groups for a in group.advantages]),
        "reward_B": column(rewards or math.nan, math.nan),
        "group_B": column(numbers, -1, "int32"),
        "truncated_B": column([rollout.stop == "length" for rollout in rollouts]),
    }


def shuffled(count: int, epochs: int, size: int, rng) -> Iterator[np.ndarray]:
    """Indices of each batch: `epochs` passes in new orders, the last batch of a pass
    may be short."""
    for _ in range(epochs):
        order = rng.permutation(count)
        for first in range(0, count, size):
            yield order[first : first + size]


def count_batches(count: int, epochs: int, size: int) -> int:
    return epochs * -(-count // size)
