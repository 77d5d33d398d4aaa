"""Transforms of demonstrations: what they keep, and what they say of it."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.prompts import transforms
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.demonstrations import from_text
from jaxloop.prompts.reversed import Reversed
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Demonstration

IDS = st.lists(st.integers(2, 9), max_size=30).map(tuple)
TEXTS = st.text(alphabet="abcd ", max_size=40)
BOS, EOS, REV = 0, 1, 77
fast = settings(deadline=None, max_examples=50, derandomize=True)


def demonstration(ids, masked=0) -> Demonstration:
    mask = (0,) * masked + (1,) * (len(ids) - masked)
    return Demonstration("d", tuple(ids), mask, 2.0)


@fast
@given(IDS)
def test_reversing_tokens_twice_is_nothing(ids):
    once = transforms.reverse_tokens(ids)
    assert transforms.reverse_tokens(once) == ids
    assert once == ids[::-1]


@fast
@given(TEXTS)
def test_reversing_words_twice_is_nothing(text):
    once = transforms.reverse_words(text)
    assert transforms.reverse_words(once) == text
    assert Counter(once.split(" ")) == Counter(text.split(" "))


@fast
@given(IDS, st.integers(0, 99), st.integers(1, 8))
def test_segments_keep_their_tokens_and_their_order_inside(ids, seed, longest):
    def run(ids, **how):
        rng = np.random.default_rng(seed)
        return transforms.reverse_segments(ids, rng, longest=longest, **how)

    assert Counter(run(ids)) == Counter(ids)
    # Of the places instead of the tokens: each step is to the next one or a jump back.
    places = run(range(len(ids)), marker=(REV,))
    segments = "|".join(map(str, places)).split(f"|{REV}|") if ids else []
    runs = [list(map(int, segment.split("|"))) for segment in segments]
    assert all(1 <= len(r) <= longest for r in runs)
    assert all(r == list(range(r[0], r[0] + len(r))) for r in runs)
    assert [x for r in reversed(runs) for x in r] == list(range(len(ids)))
    if longest == 1:
        assert run(ids) == ids[::-1]


def test_names_stay_in_their_order():
    text = "Ada Lovelace met Charles Babbage, in London."
    spans = [(0, 12), (17, 32), (37, 43)]
    assert [text[slice(*s)] for s in spans] == [
        "Ada Lovelace",
        "Charles Babbage",
        "London",
    ]
    turned = transforms.reverse_entities(text, spans)
    assert turned == "London. in Charles Babbage, met Ada Lovelace"
    assert transforms.reverse_entities(text, []) == transforms.reverse_words(text)
    with pytest.raises(ValueError, match="'Lovelace met' overlaps"):
        transforms.reverse_entities(text, [(0, 12), (4, 16)])


@fast
@given(TEXTS, st.data())
def test_entities_keep_all_words(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    spans = [(start, end)] if text[start:end].strip() else []
    turned = transforms.reverse_entities(text, spans)
    assert Counter(turned.split(" ")) == Counter(text.split(" "))
    for start, end in spans:
        assert text[start:end].strip() in turned


def test_what_begins_and_ends_a_sequence_stays():
    d = demonstration((BOS, 5, 6, 7, EOS), masked=2)
    both = transforms.with_reversed([d], transforms.reverse_tokens, fixed={BOS, EOS})
    assert both[0] is d
    assert both[1].token_ids == (BOS, 7, 6, 5, EOS)
    assert both[1].mask == (1,) * 5
    assert (both[1].id, both[1].weight) == ("d:reversed", 2.0)
    for ids in ((BOS, EOS), (EOS,), ()):
        made = transforms.with_reversed(
            [demonstration(ids)], transforms.reverse_tokens, fixed={BOS, EOS}
        )
        assert made[1].token_ids == ids


@pytest.mark.parametrize(
    ("before", "ids", "mask"),
    [
        ("all", (BOS, 7, 8, 2, 3, 4, EOS), (0, 0, 0, 0, 0, 1, 1)),
        ("completion", (BOS, 2, 3, 7, 8, 4, EOS), (0, 0, 0, 0, 0, 1, 1)),
    ],
)
def test_control_tokens_are_given_not_learned(before, ids, mask):
    d = demonstration((BOS, 2, 3, 4, EOS), masked=3)
    made = transforms.with_control(d, (7, 8), before=before, fixed={BOS})
    assert (made.token_ids, made.mask) == (ids, mask)
    assert (made.id, made.weight) == (d.id, d.weight)
    assert made.token_weights == made.repeats == ()


def test_control_tokens_keep_what_is_known_by_token():
    d = replace(
        demonstration((2, 3, 2, 3), masked=2),
        token_weights=(1.0, 1.0, -1.0, 2.0),
        repeats=(0, 0, 2, 2),
    )
    made = transforms.with_control(d, (7,), before="completion")
    assert made.token_ids == (2, 3, 7, 2, 3)
    assert made.token_weights == (1.0, 1.0, 1.0, -1.0, 2.0)
    assert made.repeats == (0, 0, 0, 3, 3)
    at_front = transforms.with_control(d, (7,))
    assert at_front.repeats == (0, 0, 0, 2, 2)
    for each in (made, at_front):
        for i, back in enumerate(each.repeats):
            assert not back or each.token_ids[i] == each.token_ids[i - back]


@fast
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=1), st.integers(1, 4)
)
def test_bins_follow_the_scores(scores, bins):
    found = transforms.quantile_bins(scores, bins)
    assert all(0 <= b < bins for b in found)
    for a, bin_a in zip(scores, found, strict=True):
        for b, bin_b in zip(scores, found, strict=True):
            assert bin_a <= bin_b or a > b


def test_distinct_scores_fill_bins_equally():
    assert transforms.quantile_bins([5, 1, 4, 2, 3, 0], 3) == [2, 0, 2, 1, 1, 0]


def test_a_repeated_span_knows_its_past():
    d = demonstration((5, 6, 7, 8, 9), masked=1)
    made = transforms.repeat_span(d, (1, 3), times=2)
    assert made.token_ids == (5, 6, 7, 6, 7, 6, 7)
    assert made.mask == (0, 1, 1, 1, 1, 1, 1)
    assert made.repeats == (0, 0, 0, 2, 2, 2, 2)
    for i, back in enumerate(made.repeats):
        assert made.token_ids[i] == made.token_ids[i - back]
    assert transforms.repeat_span(d, (0, 5), times=0).token_ids == d.token_ids
    for span in ((3, 3), (2, 9), (-1, 2)):
        with pytest.raises(ValueError, match="is not within 5 tokens"):
            transforms.repeat_span(d, span, times=1)


@fast
@given(IDS)
def test_sentences_cover_a_sequence(ids):
    spans = transforms.sentences(ids, ends={2, 3})
    assert [x for s in spans for x in range(*s)] == list(range(len(ids)))
    for start, end in spans:
        assert not {2, 3} & set(ids[start : end - 1])
        assert ids[end - 1] in (2, 3) or end == len(ids)


def test_the_end_of_a_repeated_ngram_is_avoided():
    d = demonstration((4, 5, 6, 4, 5, 6, 5), masked=4)
    made = transforms.avoid_repeated_ngrams(d, 2)
    # 4 5 ends at 4, 5 6 at 5; 6 5 is new.
    assert made.token_weights == (1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0)
    single = transforms.avoid_repeated_ngrams(d, 1, weight=-0.5)
    assert single.token_weights == (1.0, 1.0, 1.0, 1.0, -0.5, -0.5, -0.5)


@dataclass(frozen=True)
class Lines:
    texts: tuple[str, ...]

    def load(self, tokenizer):
        made = [from_text(t, t, tokenizer) for t in self.texts]
        return Dataset(demonstrations=made, notes=["lines"])

    def missing(self, **wanted):
        return [name for name, needed in wanted.items() if needed]


TOKENIZER = character_tokenizer("abcdefgh R")


@pytest.mark.parametrize(
    ("how", "reverse"),
    [
        ({"mode": "tokens"}, "hg fed cba"),
        ({"mode": "words"}, "gh def abc"),
        ({"mode": "entities", "entities": lambda text: [(0, 7)]}, "gh abc def"),
        ({"longest": 1}, "hg fed cba"),
        ({"longest": 1, "marker": "R"}, "hRgR RfReRdR RcRbRa"),
    ],
    ids=["tokens", "words", "entities", "segments", "marked"],
)
def test_a_data_set_with_its_reverse(how, reverse):
    data = Reversed(Lines(("abc def gh", "a")), **how)
    found = data.load(TOKENIZER)
    texts = [TOKENIZER.decode(d.token_ids) for d in found.demonstrations]
    assert texts == ["abc def gh", reverse, "a", "a"]
    for d in found.demonstrations:
        assert d.token_ids[-1] == TOKENIZER.eos_ids[0]
        assert d.mask == (1,) * len(d.token_ids)
    assert found.notes == ["lines", "2 demonstrations have their reverse beside"]
    assert data.missing(train=True, demonstrations=False) == ["train", "demonstrations"]


def test_the_same_seed_is_the_same_data():
    def segments(seed):
        data = Reversed(Lines(("abcdefgh" * 4,)), longest=5, seed=seed)
        return data.load(TOKENIZER).demonstrations

    assert segments(0) == segments(0) != segments(1)


@pytest.mark.parametrize(
    ("how", "message"),
    [({"longest": 0}, "longest"), ({"mode": "entities"}, "`entities` go along")],
)
def test_settings_that_make_no_sense_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        Reversed(Lines(()), **how)
