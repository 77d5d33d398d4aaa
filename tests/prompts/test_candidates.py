"""Pairs as held-out prompts that have their answers."""

import json

import pytest

from jaxloop.prompts.candidates import CandidateData, candidates
from jaxloop.prompts.tokenizer import character_tokenizer

TOKENIZER = character_tokenizer("".join(map(chr, [10, *range(32, 127)])))
WANTED = {"train": False, "test": True, "demonstrations": False}


def load(tmp_path, rows, **settings):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CandidateData(pairs=str(file), **settings).load(TOKENIZER)


def transcript(i: int, answer: str) -> str:
    return f"\n\nHuman: What is {i}?\n\nAssistant: {answer}"


def rows(count: int = 40) -> list[dict]:
    return [
        {
            "chosen": transcript(i, f"good {i}"),
            "rejected": transcript(i, f"bad {i}"),
            "source": "us",
        }
        for i in range(count)
    ]


def test_transcripts_become_prompts_with_two_answers_in_either_order(tmp_path):
    data = load(tmp_path, rows())
    assert (data.train, data.pairs) == ([], [])
    assert len(data.test) == 40
    for i, prompt in enumerate(data.test):
        assert prompt.text == f"\n\nHuman: What is {i}?\n\nAssistant:"
        assert set(prompt.columns) == {"candidates", "better", "source"}
        found = candidates(prompt, TOKENIZER)
        assert found[prompt.columns["better"]].text == f" good {i}"
        assert found[1 - prompt.columns["better"]].text == f" bad {i}"
        assert [r.index for r in found] == [0, 1]
        assert [TOKENIZER.decode(r.token_ids) for r in found] == [r.text for r in found]
    firsts = [prompt.columns["better"] for prompt in data.test]
    assert 10 < sum(firsts) < 30


def test_places_depend_on_the_row_alone(tmp_path):
    def places(rows):
        found = load(tmp_path, rows).test
        return {p.text: p.columns["better"] for p in found}

    whole, half = places(rows()), places(rows()[::2])
    assert half == {text: whole[text] for text in half}
    swapped = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows()
    ]
    assert places(swapped) == {text: 1 - place for text, place in whole.items()}


def test_questions_have_no_answers_and_come_first(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "Why?"}\n')
    data = load(tmp_path, rows(1), test=str(file))
    assert data.test[0].text == "Why?"
    assert candidates(data.test[0], TOKENIZER) == ()
    assert len(candidates(data.test[1], TOKENIZER)) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, ["data.pairs is empty: give data.pairs=FILE"]),
        ({"pairs": "x"}, []),
        ({"test": "x"}, []),
    ],
)
def test_what_is_missing_is_named(settings, says):
    found = CandidateData(**settings).missing(**WANTED)
    assert len(found) == len(says)
    assert all(word in text for word, text in zip(says, found, strict=True))
