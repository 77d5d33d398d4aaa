"""Length limits in pairs: the truth table, what is drawn, and whole data sets."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.prompts.length_limits import (
    LimitedPairs,
    draw_limit,
    limited_prompt,
    under_limit,
    violates,
    violations,
    with_limits,
    words,
)
from jaxloop.records import Pair, Prompt, Rollout

PROMPT = Prompt("p", "Say it.", (1, 2), {"topic": "any"})
fast = settings(deadline=None, max_examples=100, derandomize=True)


def pair(chosen: int, rejected: int) -> Pair:
    """Sides of so many words."""
    sides = [
        Rollout("p", i, (i,), " ".join(["word"] * n), (), (), "eos")
        for i, n in enumerate((chosen, rejected))
    ]
    return Pair(PROMPT, *sides, 1.0, 0.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "winner"),
    [
        (6, 3, "rejected"),  # only the chosen one is too long
        (3, 6, "chosen"),  # only the rejected one is
        (2, 5, "chosen"),  # none is, the limit itself being allowed
        (5, 2, "chosen"),
        (6, 7, None),  # both are
        (7, 6, None),
    ],
)
def test_the_limit_comes_before_quality(chosen, rejected, winner):
    given = pair(chosen, rejected)
    limited = under_limit(given, 5)
    if winner is None:
        assert limited is None
        return
    sides = [given.chosen, given.rejected]
    if winner == "rejected":
        sides.reverse()
    assert [limited.chosen, limited.rejected] == sides


@fast
@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 10))
def test_a_chosen_side_never_violates_where_the_other_keeps_to_it(a, b, limit):
    limited = under_limit(pair(a, b), limit)
    over = sorted([a > limit, b > limit])
    assert (limited is None) == (over == [True, True])
    if limited is not None:
        assert words(limited.chosen.text) <= limit
        assert (words(limited.rejected.text) > limit) == over[1]


@fast
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 99))
def test_every_limit_that_is_drawn_makes_a_useful_pair(a, b, seed):
    drawn = pair(a, b)
    limit = draw_limit(drawn, np.random.default_rng(seed))
    assert 1 <= limit <= max(2 * max(a, b), 1)
    assert under_limit(drawn, limit) is not None


def test_all_useful_cases_are_drawn():
    rng, seen = np.random.default_rng(0), Counter()
    for sides in ((9, 4), (4, 9)):
        for _ in range(200):
            limit = draw_limit(pair(*sides), rng)
            limited = under_limit(pair(*sides), limit)
            seen[sides, limit >= 9, words(limited.chosen.text)] += 1
    assert set(seen) == {
        ((9, 4), True, 9),  # none violates
        ((9, 4), False, 4),  # the longer does: turned round
        ((4, 9), True, 4),
        ((4, 9), False, 4),  # the longer does, and was rejected already
    }
    assert all(70 < count < 130 for count in seen.values())


def test_words_and_violations():
    assert words(" two \n words") == 2
    limited = replace(PROMPT, columns={"limit": 2})
    assert not violates(limited, "two words")
    assert violates(limited, "three words now")
    assert violates(limited, "four", len)
    assert not violates(PROMPT, "as long as one likes")
    rollouts = pair(3, 2).chosen, pair(3, 2).rejected
    assert [violations(limited, rollout) for rollout in rollouts] == [1.0, 0.0]


def test_the_instruction_stands_in_front_of_a_text(plain):
    prompt = limited_prompt(PROMPT, 12, plain)
    assert prompt.text == "Answer in at most 12 words.\n\nSay it."
    assert prompt.token_ids == plain.encode_prompt(prompt.text)
    assert prompt.columns == {"topic": "any", "limit": 12}
    assert prompt.id == "p:limit"


def test_the_instruction_is_the_users_in_a_conversation(bpe):
    def user(content):
        return {"role": "user", "content": content}

    before = (user("Hello."), {"role": "assistant", "content": "Yes?"})
    chat = replace(PROMPT, messages=(*before, user("Say it.")))
    prompt = limited_prompt(chat, 12, bpe, "At most {limit}: ")
    assert prompt.messages == (*before, user("At most 12: Say it."))
    ids = bpe.chat_ids(prompt.messages, add_generation_prompt=True)
    assert prompt.token_ids == ids
    parts = [{"type": "text", "text": "Say it."}]
    chat = replace(PROMPT, messages=(user(parts),))
    said = {"type": "text", "text": "At most 12: "}
    with pytest.raises(ValueError, match="no message is the user's"):
        limited_prompt(replace(chat, messages=before[1:]), 12, bpe)
    (message,) = limited_prompt(
        chat, 12, replace(bpe, chat_template=PARTS), "At most {limit}: "
    ).messages
    assert message["content"] == [said, *parts]


PARTS = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% endfor %}"
)


def test_the_pairs_themselves_stay_and_each_has_a_copy(plain):
    pairs = [pair(a, b) for a, b in ((9, 4), (3, 8), (5, 5)) for _ in range(20)]
    pairs = [
        replace(p, prompt=replace(PROMPT, id=f"p{i}")) for i, p in enumerate(pairs)
    ]
    made, note = with_limits(pairs, plain, np.random.default_rng(0))
    assert made[::2] == pairs
    for own, limited in zip(pairs, made[1::2], strict=True):
        limit = limited.prompt.columns["limit"]
        assert limited.prompt == limited_prompt(own.prompt, limit, plain)
        assert {limited.chosen.prompt_id, limited.rejected.prompt_id} == {
            limited.prompt.id
        }
        assert not violates(limited.prompt, limited.chosen.text)
        texts = {own.chosen.text, own.rejected.text}
        assert {limited.chosen.text, limited.rejected.text} == texts
    turned = sum(
        limited.chosen.text != own.chosen.text
        for own, limited in zip(pairs, made[1::2], strict=True)
    )
    assert 0 < turned < 20
    assert f"60 pairs have a copy with a limit ({60 - turned} as they were" in note
    again, _ = with_limits(pairs, plain, np.random.default_rng(0))
    assert again == made


def test_a_file_of_pairs(write_jsonl, plain):
    rows = [
        {"prompt": f"Question {i}?", "chosen": " a long answer", "rejected": " short"}
        for i in range(50)
    ]
    file = write_jsonl(rows)
    data = LimitedPairs(pairs=file).load(plain)
    assert len(data.pairs) == 100
    assert "50 pairs have a copy" in data.notes[-1]
    asked = [p.prompt.text for p in data.pairs[1::2]]
    assert all(text.startswith("Answer in at most ") for text in asked)
    assert json.loads(json.dumps(dict(data.pairs[1].prompt.columns)))["limit"] >= 1
    other = LimitedPairs(pairs=file, limit_seed=1).load(plain)
    assert other.pairs[::2] == data.pairs[::2]
    assert other.pairs != data.pairs


def test_an_instruction_without_the_limit_is_refused():
    with pytest.raises(ValueError, match=r"write \{limit\} where the number goes"):
        LimitedPairs(instruction="Be brief. ")
