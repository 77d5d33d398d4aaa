from dataclasses import replace

import pytest

from jaxloop.sampling.settings import Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", float("nan")),
        ("max_new_tokens", 0),
        ("rows", 0),
        ("prefill_rows", 0),
        ("chunk", 0),
        ("stop", ("",)),
        ("stop", "end"),
        ("prompt_buckets", (0,)),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        replace(Sampling(), **{field: value})


def test_all_problems_come_in_one_message():
    with pytest.raises(ValueError, match=r"top_p.*min_p"):
        Sampling(top_p=2.0, min_p=2.0)


def test_buckets_are_powers_of_two_or_those_given():
    assert [Sampling().bucket(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]
    given = Sampling(prompt_buckets=(100, 40))
    assert [given.bucket(n) for n in (3, 40, 41)] == [40, 40, 100]
    with pytest.raises(ValueError, match="101 tokens"):
        given.bucket(101)


def test_slots_hold_the_bucket_and_the_completion():
    assert Sampling(max_new_tokens=9).slots(32) == 32 + 9
