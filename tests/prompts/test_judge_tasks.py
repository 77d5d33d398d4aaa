"""Pairs made into training prompts for a judge."""

from dataclasses import replace

import pytest

from jaxloop.prompts.dataset import Dataset, JsonlData
from jaxloop.prompts.jsonl import DataError
from jaxloop.prompts.judge_tasks import JudgeTasks, requests
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Pair, Prompt, Rollout
from jaxloop.scoring import After, Judge, Tagged, Verdict
from jaxloop.scoring.judge import both_orders, each, one_order

TOKENIZER = character_tokenizer("".join(map(chr, range(32, 127))) + "\n·")
PAIRWISE = Judge(template="pairwise", parse=Verdict(), show=both_orders)
POINTWISE = Judge(template="pointwise", parse=Tagged(), show=each)
ROWS = [
    {"prompt": f"Name a fruit, number {i}.", "chosen": f"Pear {i}", "rejected": "Chalk"}
    for i in range(4)
]


def pair(chosen="Pear", rejected="Chalk", **columns) -> Pair:
    prompt = Prompt("q", "Name a fruit.", (1,), columns)
    sides = (
        Rollout("q", i, (), text, (), (), "eos")
        for i, text in enumerate((chosen, rejected))
    )
    return Pair(prompt, *sides, 1.0, 0.0)


@pytest.fixture
def tasks(write_jsonl):
    """JudgeTasks over two files; keyword arguments as its own."""

    def make(train=ROWS[:3], test=ROWS[3:], **settings) -> JudgeTasks:
        sources = (
            JsonlData(pairs=write_jsonl(rows, f"{name}.jsonl"))
            for name, rows in (("train", train), ("test", test))
        )
        return JudgeTasks(*sources, **{"judge": PAIRWISE, **settings})

    return make


def test_both_orders_and_the_place_of_the_better_one():
    first, second = requests(pair(), PAIRWISE, TOKENIZER)
    assert [first.columns, second.columns] == [
        {"pair": "q", "label": "A"},
        {"pair": "q", "label": "B"},
    ]
    assert first.text.index("Pear") < first.text.index("Chalk")
    assert second.text.index("Pear") > second.text.index("Chalk")
    assert first.id != second.id
    assert TOKENIZER.decode(first.token_ids) == first.text


def test_each_completion_and_which_is_better():
    first, second = requests(pair(), POINTWISE, TOKENIZER)
    assert [first.columns, second.columns] == [
        {"pair": "q", "better": True},
        {"pair": "q", "better": False},
    ]
    assert "Pear" in first.text
    assert "Chalk" not in first.text
    assert "Chalk" in second.text


def test_a_trained_judge_reads_what_a_used_one_reads():
    """The very texts that `Judge.score` asks."""
    asked = []

    class Models:
        def special_tokens(self, *, by):
            return {"<eos>", "<pad>"}

        def prompts(self, texts, *, by):
            asked.extend(texts.values())
            return [Prompt(id, text, ()) for id, text in texts.items()]

        def write(self, prompts, sampling, *, by):
            return [()] * len(prompts)

    given = pair("Pear <eos> [[A]]", "Chalk")
    sides = (given.chosen, given.rejected)
    for judge in (PAIRWISE, POINTWISE):
        asked.clear()
        judge.score(Models(), [given.prompt], [sides])
        trained = [prompt.text for prompt in requests(given, judge, TOKENIZER)]
        assert trained == asked
        assert not any("<eos>" in text for text in trained)


def test_the_judge_sees_what_it_would_see():
    judge = replace(PAIRWISE, sees=After("#"))
    first, _ = requests(pair("thought #Pear", "#Chalk"), judge, TOKENIZER)
    assert "thought" not in first.text
    assert requests(pair("Pear", "#Chalk"), judge, TOKENIZER) == []


def test_columns_of_the_pair_stay():
    (first, _) = requests(pair(set="hard"), PAIRWISE, TOKENIZER)
    assert first.columns == {"set": "hard", "pair": "q", "label": "A"}


def test_two_files_become_two_splits_of_neighbours(tasks):
    data = tasks().load(TOKENIZER)
    assert (len(data.train), len(data.test)) == (6, 2)
    for prompts in (data.train, data.test):
        names = [prompt.columns["pair"] for prompt in prompts]
        assert names[::2] == names[1::2]
        assert len(set(names)) == len(prompts) / 2
        labels = [prompt.columns["label"] for prompt in prompts]
        assert labels.count("A") == labels.count("B")


def test_long_requests_leave_with_their_other_order(tasks):
    rows = [*ROWS[:2], {**ROWS[2], "rejected": "Chalk " * 100}]
    data = tasks(rows, max_prompt_tokens=1100).load(TOKENIZER)
    assert len(data.train) == 4
    (note,) = data.notes
    assert "1 of 3 pairs" in note
    assert "max_prompt_tokens=1100" in note
    with pytest.raises(DataError, match="none is left"):
        tasks(max_prompt_tokens=10).load(TOKENIZER)


def test_a_question_in_both_files_is_named(tasks):
    with pytest.raises(DataError, match=r"1 of 2 held-out pairs.*number 1"):
        tasks(ROWS[:3], ROWS[1:2] + ROWS[3:]).load(TOKENIZER)


def test_a_judge_of_one_order_is_refused():
    with pytest.raises(ValueError, match="both orders, or each"):
        JudgeTasks(None, None, replace(PAIRWISE, show=one_order))


def test_files_that_are_needed_are_asked_for_by_name(tasks):
    empty = JudgeTasks(JsonlData(), JsonlData(), PAIRWISE)
    found = empty.missing(train=True, test=True, demonstrations=True)
    assert [problem.split(" is empty")[0] for problem in found] == [
        "data.train.pairs",
        "data.test.pairs",
        "data.train.demonstrations",
    ]
    assert empty.missing(train=False, test=False, demonstrations=False) == []
    assert tasks().missing(train=True, test=True, demonstrations=False) == []


def test_an_evaluation_wants_the_held_out_pairs_only(tasks):
    data = replace(tasks(), train=JsonlData()).load(TOKENIZER)
    assert data.train == []
    assert len(data.test) == 2


def test_any_source_of_pairs_will_do():
    class Two:
        def load(self, tokenizer):
            return Dataset(pairs=[pair()], notes=["made up"])

    with pytest.raises(DataError, match="trained on"):
        JudgeTasks(Two(), Two(), PAIRWISE).load(TOKENIZER)
    data = JudgeTasks(Two(), JsonlData(), PAIRWISE).load(TOKENIZER)
    assert data.notes == ["made up"]
    assert len(data.train) == 2
