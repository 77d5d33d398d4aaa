"""Batches of examples: which row is what, and what counts."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jaxloop.loop.selecting import imitate
from jaxloop.records import (
    Group,
    Labelled,
    Pair,
    Prompt,
    Rollout,
    Score,
    from_json,
    to_json,
)
from jaxloop.training.batches import (
    Layout,
    edited_tokens,
    example_batch,
    example_rows,
    group_batch,
)

LAYOUT = Layout(prompt=8, completion=8)


def prompt(i: int) -> Prompt:
    return Prompt(f"p{i}", "", (1,) * (i + 1))


def rollout(of: Prompt, index: int, length: int, stop="eos") -> Rollout:
    ids = tuple(10 * index + i for i in range(1, length + 1))
    logps = tuple(-float(i) for i in range(1, length + 1))
    return Rollout(of.id, index, ids, "", logps, logps, stop)


def pair(i: int) -> Pair:
    own = prompt(i)
    return Pair(own, rollout(own, 0, 3), rollout(own, 1, 2), 3.0, 1.0, weight=0.5)


def labelled(i: int, label: float, of: int | None = None) -> Labelled:
    own = prompt(i if of is None else of)
    return Labelled(own, rollout(own, i, 2), label, steps=((1, 1.0), (2, 0.0)))


def test_pairs_lie_side_by_side_and_padding_does_not_count():
    pairs = [pair(0), pair(1)]
    logp_NRC = np.arange(2 * 2 * 8, dtype=np.float32).reshape(2, 2, 8)
    batch = example_batch(
        pairs, example_rows(pairs), LAYOUT, 0, 3, {"r": logp_NRC}, kind="pairs"
    )
    assert batch["mask_BC"].sum(axis=1).tolist() == [3, 2, 3, 2, 0, 0]
    assert batch["valid_B"].tolist() == [1, 1, 1, 1, 0, 0]
    assert batch["weight_B"].tolist() == [0.5] * 4 + [0, 0]
    assert batch["margin_B"].tolist() == [2, 2, 2, 2, 0, 0]
    np.testing.assert_allclose(batch["target_B"][:4], 1 / (1 + np.exp(-2)), rtol=1e-6)
    assert (batch["r"][:4] == logp_NRC.reshape(4, 8)).all()
    assert not batch["r"][4:].any()


@pytest.mark.parametrize(
    ("chosen", "rejected", "marks"),
    [
        ((1, 2, 3, 4), (1, 9, 3, 4), ([0, 1, 0, 0], [0, 1, 0, 0])),
        ((1, 2, 3, 4), (1, 4), ([0, 1, 1, 0], [0, 0])),
        ((5, 6), (5, 6), ([0, 0], [0, 0])),
        ((5,), (6, 7), ([1], [1, 1])),
        ((), (6,), ([], [1])),
        # Frequent tokens count as any other: 300 of one kind around one edit.
        ((7,) * 300, (7,) * 150 + (8,) + (7,) * 150, ([0] * 300, None)),
    ],
)
def test_edits_are_what_the_other_completion_lacks(chosen, rejected, marks):
    own = pair(0)
    own = replace(
        own,
        chosen=replace(own.chosen, token_ids=chosen),
        rejected=replace(own.rejected, token_ids=rejected),
    )
    first, second = edited_tokens(own)
    expected = marks[1] or [int(token == 8) for token in rejected]
    assert (first.tolist(), second.tolist()) == (marks[0], expected[: len(rejected)])


def test_edits_lie_beside_the_tokens():
    whole, own = pair(0), prompt(0)
    first, second = rollout(own, 0, 4), rollout(own, 1, 3)
    first = replace(first, token_ids=(11, 12, 13, 14))
    second = replace(second, token_ids=(11, 12, 15))
    pairs = [replace(whole, chosen=first, rejected=second)]
    make = partial(example_batch, layout=LAYOUT, pad_id=0, size=2, logps={})
    batch = make(pairs, example_rows(pairs), kind="pairs", edits=True)
    assert batch["edited_BC"][:, :4].tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 0],
        [0] * 4,
        [0] * 4,
    ]
    assert not batch["edited_BC"][:, 4:].any()
    assert "edited_BC" not in make(pairs, example_rows(pairs), kind="pairs")


def test_mismatched_rows_have_the_prompt_of_one_and_the_answer_of_another():
    examples = [labelled(0, 1.0), labelled(1, 0.0, of=0), labelled(2, 1.0)]
    rows = example_rows(examples, mismatched=True)
    for example, ((own, given), (same, other)) in zip(examples, rows, strict=True):
        assert own is same is example.prompt
        assert given is example.rollout
        assert other.prompt_id != own.id


def test_a_prompt_that_a_file_repeats_under_another_id_is_no_mismatch():
    twice = [labelled(0, 1.0), labelled(1, 0.0, of=0), labelled(2, 1.0)]
    again = replace(twice[1].prompt, id="again")
    twice[1] = replace(twice[1], prompt=again)
    rows = example_rows(twice, mismatched=True)
    assert rows[0][1][1] is twice[2].rollout


def test_labels_and_steps_stay_with_their_rows():
    examples = [labelled(0, 1.0), labelled(1, 0.0)]
    rows = example_rows(examples)
    batch = example_batch(examples, rows, LAYOUT, 0, 4, {}, kind="labelled", each=1)
    assert batch["label_B"].tolist() == [1, 0, 0, 0]
    assert batch["step_BC"][0, :2].tolist() == [1, 0]
    assert np.isnan(batch["step_BC"][0, 2:]).all()
    assert np.isnan(batch["step_BC"][2:]).all()


@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_no_examples_make_a_batch_of_the_same_arrays(kind):
    full = [pair(0)] if kind == "pairs" else [labelled(0, 1.0)]
    each = 2 if kind == "pairs" else 1
    made = [
        example_batch(e, example_rows(e), LAYOUT, 0, 2, {}, kind=kind, each=each)
        for e in (full, [])
    ]
    assert {k: x.shape for k, x in made[0].items()} == {
        k: x.shape for k, x in made[1].items()
    }
    assert not made[1]["valid_B"].any()


def test_masked_tokens_are_read_and_not_trained_on():
    whole, own = pair(0), prompt(0)
    spared = replace(rollout(own, 0, 6), masked=((1, 3), (4, 5)))
    assert from_json(Rollout, to_json(spared)) == spared
    mask = [1, 0, 0, 1, 0, 1, 0, 0]
    pairs = [replace(whole, chosen=spared)]
    batch = example_batch(pairs, example_rows(pairs), LAYOUT, 0, 1, {}, kind="pairs")
    # No objective learns where the mask is 0: tests/losses.
    assert batch["mask_BC"].tolist() == [mask, [1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["tokens_BT"][0, 8:14].tolist() == list(spared.token_ids)
    assert batch["segments_BT"][0, 8:].tolist() == [1] * 6 + [0] * 2
    group = Group(own, (spared,), (Score(1.0),), (0.5,), (0.25,))
    batch = group_batch([group], LAYOUT, 0, 2)
    assert batch["mask_BC"].tolist() == [mask, [0] * 8]
    assert batch["opposed_B"].tolist() == [0.25, 0]
    assert "opposed_B" not in group_batch([replace(group, opposed=())], LAYOUT, 0, 2)
    assert imitate(own, spared).mask == (0, *mask[:6])


def test_groups_tell_rewards_truncation_and_who_belongs_together():
    own = prompt(0)
    rollouts = (rollout(own, 0, 2), rollout(own, 1, 3, "length"))
    group = Group(own, rollouts, (Score(1.0), Score(None, "unscored")), (0.5, 0.0))
    batch = group_batch([group], LAYOUT, 0, 4)
    assert batch["reward_B"][0] == 1
    assert np.isnan(batch["reward_B"][1:]).all()
    assert batch["truncated_B"].tolist() == [0, 1, 0, 0]
    assert batch["group_B"].tolist() == [0, 0, -1, -1]
    assert batch["drawn_logp_BC"][1, :3].tolist() == [-1, -2, -3]
