import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.records import Rollout
from jaxloop.report import tables
from jaxloop.report.curves import accuracy_by_round
from jaxloop.report.folder import evaluation_label, evenly, read_run
from jaxloop.report.tables import comparison, read_sets, rollout_sets
from jaxloop.report.tokens import LEVELS, encode_logps, find_decoder, piece_lengths
from jaxloop.report.views import fit, rollout_view


def completion(text, tokens, stop="eos"):
    return Rollout("p", 0, tuple(range(tokens)), text, (-0.5,) * tokens, (), stop)


@given(st.integers(0, 500), st.integers(1, 60))
def test_evenly_spaced_indices(count, most):
    chosen = evenly(count, most)
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    if most > 1 and count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        gaps = np.diff(chosen)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(st.lists(st.floats(-50, 0), max_size=50))
def test_levels_keep_probabilities_readable(logps):
    levels = encode_logps(logps)
    assert len(levels) == len(logps)
    for level, logp in zip(levels, logps, strict=True):
        nats = (LEVELS.index(level) / 12) ** 2
        # Half a step of the root: what the page says is good to two digits or 0.002.
        assert abs(nats**0.5 - (-logp) ** 0.5) <= 0.5 / 12 + 1e-9


def test_one_character_a_token_needs_no_tokenizer():
    assert piece_lengths(completion("12+3", 5), None) == []
    assert piece_lengths(completion("12+3", 4, "length"), None) == []
    assert piece_lengths(completion("words", 2), None) is None


def test_pieces_by_a_tokenizer():
    words = {0: "two", 1: " plus", 2: " three", 3: ""}
    made = completion("two plus three", 4)
    assert piece_lengths(made, lambda ids: "".join(words[i] for i in ids)) == [
        3,
        5,
        6,
        0,
    ]


def test_pieces_of_a_character_in_several_tokens():
    parts = [b"a", *(bytes([b]) for b in "漢".encode()), b"b"]

    def decode(ids):
        return b"".join(parts[i] for i in ids).decode(errors="replace")

    assert piece_lengths(completion("a漢b", 5, "stop"), decode) == [1, 0, 0, 1, 1]


def test_pieces_that_do_not_make_the_text_are_not_guessed():
    assert (
        piece_lengths(completion("something else", 3), lambda ids: "x" * len(ids))
        is None
    )


def test_the_tokenizer_of_the_run_is_found(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"two": 0, "Ġplus": 1, "Ġthree": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="two"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path / "model" / "tokenizer"
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    decode = find_decoder(tmp_path, None)
    assert piece_lengths(completion("two plus three", 3, "stop"), decode) == [3, 5, 6]
    assert find_decoder(tmp_path / "elsewhere", None) is None


def test_a_long_text_is_cut_and_says_so():
    view = rollout_view(completion("x" * 10_000, 10_001), None)
    assert len(view["text"]) == len(view["q"]) == 6000
    assert view["cut"] == 4000
    assert view["n"] == 10_001


def test_fitting_is_even_deterministic_and_within_the_budget():
    items = [{"id": i, "text": "é" * 100} for i in range(300)]
    chosen = fit(items, 20_000)
    assert chosen == fit(items, 20_000)
    size = sum(len(json.dumps(x, ensure_ascii=False).encode()) for x in chosen)
    assert size == pytest.approx(17_500, abs=2_500)
    assert (chosen[0]["id"], chosen[-1]["id"]) == (0, 299)
    assert fit(items, 10**9) == items


def test_rounds_are_counted_from_one(finished):
    run = read_run(finished)
    labels = [one["label"] for one in rollout_sets(read_sets(run), None)]
    assert labels == ["Round 1", "Round 2", "Round 3"]
    assert [file.label for file in run.evaluations][:2] == ["Before", "After round 1"]
    assert evaluation_label("step_000120") == "Step 120"


def test_a_big_run_stays_small(monkeypatch, make_run, tmp_path):
    monkeypatch.setattr(tables, "ROLLOUT_BYTES", 300_000)
    run = read_run(make_run(tmp_path / "big", rounds=2, prompts=230, held_out=3, n=8))
    sets = rollout_sets(read_sets(run), None)
    sizes = [len(json.dumps(x["prompts"], ensure_ascii=False).encode()) for x in sets]
    assert [one["total"] for one in sets] == [238, 238]
    assert all(100_000 < size <= 150_000 for size in sizes)


def test_the_comparison_counts_every_prompt_at_each_evaluation(finished):
    run = read_run(finished)
    compared = comparison(run, None)
    assert compared is not None
    assert compared["total"] == len(compared["verdicts"]) == 30
    for i, file in enumerate(run.evaluations):
        values = [
            json.loads(line)["scores"][0]["value"]
            for line in file.path.read_text().splitlines()
        ]
        known = {None: "-", 0.0: "0", 1.0: "1"}
        assert [v[i] for v in compared["verdicts"]] == [known[v] for v in values]
    for item in compared["shown"]:
        assert len(item["outs"]) == 4


def test_what_turned_wrong_is_not_lost_among_the_rest(monkeypatch, finished):
    monkeypatch.setattr(tables, "COMPARED", 8)
    compared = tables.comparison(read_run(finished), None)
    assert compared is not None
    changes = [compared["verdicts"][item["index"]] for item in compared["shown"]]
    all_changes = {v[0] + v[-1] for v in compared["verdicts"]}
    assert len(changes) <= 8
    assert {v[0] + v[-1] for v in changes} >= all_changes & {"10", "01", "11", "00"}


def test_groups_of_online_runs_show_their_advantages(tmp_path, group_line):
    folder = tmp_path / "records" / "online"
    folder.mkdir(parents=True)
    (folder / "step_000012.jsonl").write_text(group_line * 2)
    (tmp_path / "metrics.jsonl").write_text("")
    (one,) = rollout_sets(read_sets(read_run(tmp_path)), None)
    assert one["label"] == "Step 12"
    advantages = [rollout["adv"] for rollout in one["prompts"][0]["rollouts"]]
    assert advantages == [0.5, -0.5, 0.25, -0.25]


@pytest.mark.parametrize("torn", ['{"prompt": {"id', "not json\n", '{"prompt": 1}\n'])
def test_records_that_cannot_be_read_are_said(make_run, tmp_path, torn):
    out = make_run(tmp_path / "torn", rounds=1, prompts=2, held_out=2, n=2)
    with (out / "records/round_000/rollouts.jsonl").open("a") as file:
        file.write(torn)
    run = read_run(out)
    (one,) = rollout_sets(read_sets(run), None)
    assert len(one["prompts"]) == 10
    assert bool(run.notes) == torn.endswith("\n")


def test_online_runs_are_compared_by_step(online):
    run = read_run(online)
    compared = comparison(run, None)
    assert compared is not None
    assert compared["labels"] == ["Before", "Step 30", "Step 40", "At the end"]
    series = accuracy_by_round(run)
    assert series is not None
    assert series.x == (20, 30, 40, 50)
    assert series.y == (0.3, 0.6, 0.7, 0.9)
    labels = [one["label"] for one in rollout_sets(read_sets(run), None)]
    assert len(labels) == tables.SETS
    assert (labels[0], labels[-1]) == ("Step 0", "Step 29")
