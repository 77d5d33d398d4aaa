"""What judges wrote, as the page embeds it."""

import json
from dataclasses import replace

import pytest

from jaxloop.report.folder import read_run
from jaxloop.report.judgements import by_interest, embed_texts, judged_cases
from jaxloop.report.tables import labelled_sets, read_sets, rollout_sets, why_left_out
from jaxloop.report.views import json_bytes
from tests.report.judged_run import judgement, meta_row, scored

A, B, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        (A, B, True),  # the one shown first, then as second: the same answer
        (A, A, False),
        (B, B, False),
        (TIE, TIE, True),
        (TIE, A, False),
        (A, None, None),
    ],
)
def test_both_orders_are_one_case_that_agrees_or_not(first, second, agree):
    row = scored("xy", [judgement((0, 1), first), judgement((1, 0), second)])
    (case,) = judged_cases(row)
    assert case.agree is agree
    view = case.view()
    assert [order["of"] for order in view["orders"]] == [(0, 1), (1, 0)]
    assert (case.interest == "orders") == (agree is False)


def test_a_list_and_its_reverse_agree_only_in_every_pair():
    forth = judgement((0, 1, 2), (3.0, 2.0, 1.0))
    for values, agree in (((1.0, 2.0, 3.0), True), ((2.0, 1.0, 3.0), False)):
        row = scored("xyz", [forth, judgement((2, 1, 0), values)])
        (case,) = judged_cases(row)
        assert case.agree is agree


def test_what_cannot_be_read_is_invalid_and_never_a_number():
    (case,) = judged_cases(scored("x", [judgement((0,), None, (4.0,), None)]))
    assert (case.invalid, case.means) == (2, [{0: 4.0}])
    told = case.view(texts=True)["orders"][0]["told"]
    assert [one["values"] for one in told] == [None, (4.0,)]
    (silent,) = judged_cases(scored("x", [judgement((0,), None)]))
    assert silent.means == [None]
    assert "mean" not in silent.view()["orders"][0]


def test_a_request_that_was_too_long_has_no_judgements():
    row = scored("xy", [judgement((0, 1)), judgement((1, 0), A)])
    (case,) = judged_cases(row)
    assert (case.agree, case.invalid) == (None, 0)
    assert case.view(texts=True)["orders"][0]["told"] == []


@pytest.mark.parametrize(
    ("scores", "truths", "wrong"),
    [
        ([0.9, 0.1], [1.0, 0.0], (False, False)),
        ([0.2, 0.1], [1.0, 0.0], (True, False)),  # in [0, 1]: by its side of 1/2
        ([4.0, 2.0], [1.0, 0.0], (False, False)),  # else: by its place among others
        ([2.0, 4.0], [1.0, 0.0], (True, True)),
        ([3.0, 3.0], [1.0, 0.0], (False, False)),
        ([2.0, 4.0], [None, None], (False, False)),
    ],
)
def test_single_answers_against_the_truth(scores, truths, wrong):
    told = [judgement((i,), (score,)) for i, score in enumerate(scores)]
    cases = judged_cases(scored("xy", told, scores, truths))
    assert tuple(case.wrong for case in cases) == wrong


@pytest.mark.parametrize(("values", "wrong"), [(A, False), (B, True), (TIE, False)])
def test_pairs_against_the_truth(values, wrong):
    row = scored("xy", [judgement((0, 1), values)], [1.0, 0.0], [1.0, 0.0])
    assert judged_cases(row)[0].wrong is wrong


def test_judgements_of_judgements_say_whose_and_show_both():
    cases = judged_cases(meta_row())
    answer, agreed, disputed = cases
    assert answer.about is None
    assert [case.view()["about"] for case in (agreed, disputed)] == [0, 0]
    assert (agreed.agree, disputed.agree) == (True, False)
    view = agreed.view(texts=True)
    assert view["shown"] == ["I say (4.0,).", "I say (1.0,)."]
    assert [one.get("meta") for one in answer.view()["orders"][0]["told"]] == [
        0.4,
        0.9,
        None,
        -1.3,
        0.1,
    ]


def test_equal_judgements_are_written_once_with_their_numbers():
    one = judgement((0,), (1.0,), (1.0,), None, texts=["same", "same", "other"])
    (case,) = judged_cases(scored("x", [one]))
    told = case.view(texts=True)["orders"][0]["told"]
    assert [(one["k"], one["text"]) for one in told] == [
        ([0, 1], "same"),
        ([2], "other"),
    ]


def test_of_many_judgements_the_telling_ones_have_texts():
    values = [(3.0,), (3.0,), (2.0,), (3.0,), (5.0,), (3.0,), None]
    (case,) = judged_cases(scored("x", [judgement((0,), *values, texts="abcdefg")]))
    told = case.view(texts=True)["orders"][0]["told"]
    assert [one["text"] for one in told if "text" in one] == ["a", "c", "e", "g"]
    assert [one["values"] for one in told] == values


def test_the_disputed_come_first_and_each_kind_has_its_turn():
    both = [judgement((0, 1), A), judgement((1, 0), A)]
    (orders,) = judged_cases(scored("xy", both))
    (invalid,) = judged_cases(scored("x", [judgement((0,), None)]))
    (wide,) = judged_cases(scored("x", [judgement((0,), (1.0,), (5.0,))]))
    (close,) = judged_cases(scored("x", [judgement((0,), (4.0,), (5.0,))]))
    (plain,) = judged_cases(scored("x", [judgement((0,), (4.0,))]))
    found = by_interest([plain, close, wide, invalid, orders])
    assert found == [orders, invalid, wide, close, plain]


def test_texts_stay_within_their_budget_most_disputed_first():
    long = ["word " * 300] * 2
    rows = [
        scored("xy", [judgement((0, 1), values, B, texts=long, request="x" * 9000)])
        for values in [A] * 9 + [B]
    ]
    cases = [judged_cases(row) for row in rows]
    prompts = [{"judged": [case.view() for case in of_row]} for of_row in cases]
    size = json_bytes(cases[0][0].view(texts=True))
    assert size < 12_000
    assert embed_texts(prompts, cases, 3 * size + 100) == 3
    has_text = ["request" in prompt["judged"][0]["orders"][0] for prompt in prompts]
    assert has_text == [True] * 3 + [False] * 7
    assert embed_texts(prompts, cases, 10**9) == 10


def test_a_round_shows_its_judgements_and_what_was_left_out(judged):
    run = read_run(judged)
    canaries, first, last = rollout_sets(read_sets(run), None)
    assert canaries["label"] == "Canaries, after round 1"
    assert (first["key"], last["label"]) == ("round_000", "Round 2")
    assert (
        last["cases"]
        == last["texts"]
        == sum(len(prompt.get("judged", ())) for prompt in last["prompts"])
    )
    left = {p["id"]: p["left"] for p in last["prompts"] if "left" in p}
    assert left["tides-0"] == "filter 0 RIP"
    assert len(left) == 3
    assert not last["unit"]  # the meta-judged answer has 2.75 of 5 points
    assert canaries["unit"]


def test_why_a_prompt_gave_nothing():
    tied, silent = scored("xy", scores=[2.0, 2.0]), scored("xy")
    mixed = scored("xy", scores=[2.0, 1.0])
    assert why_left_out(tied, "no pair") == "no pair: all scores are equal"
    assert why_left_out(silent, "no pair") == "no pair: nothing was scored"
    assert why_left_out(mixed, "no pair") == "no pair"
    assert why_left_out(mixed, None) is None


def test_labelled_rows_are_shown_with_their_steps(judged):
    sets = labelled_sets(read_run(judged), None)
    assert [one["total"] for one in sets] == [2, 2]
    good, bad = sets[-1]["rows"]
    assert (good["out"]["value"], bad["out"]["value"]) == (1.0, 0.0)
    assert good["steps"] == [[1.0, 5], [0.0, 9]]
    assert bad["weight"] == 2.0


def test_numbers_of_another_kind_are_told_from_right_and_wrong(judged):
    run = read_run(judged)
    row = read_sets(run)[-1].records[0]
    fives = tuple(replace(score, value=5.0) for score in row.scores)
    sets = read_sets(run)[-1:]
    (one,) = rollout_sets(
        [replace(sets[0], records=[replace(row, scores=fives)])], None
    )
    assert (one["unit"], one["middle"]) == (False, 5.0)
    json.dumps(one, allow_nan=False)
