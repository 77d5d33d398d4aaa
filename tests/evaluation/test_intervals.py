import numpy as np
import pytest

from jaxloop.evaluation.intervals import Z, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "expected"),
    [
        # The roots of (p - share)^2 = z^2 p (1 - p) / n.
        (0, 10, (0.0, Z**2 / (10 + Z**2))),
        (10, 10, (10 / (10 + Z**2), 1.0)),
        (5, 10, (0.2366, 0.7634)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I
        (15, 148, (0.0624, 0.1605)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_known_intervals(successes, total, expected):
    assert wilson_interval(successes, total) == pytest.approx(expected, abs=1e-4)


def test_its_ends_are_where_the_score_test_just_rejects():
    for successes, total in ((3, 17), (40.5, 90)):
        share = successes / total
        for end in wilson_interval(successes, total):
            assert abs(share - end) == pytest.approx(
                Z * np.sqrt(end * (1 - end) / total)
            )


def test_it_holds_the_truth_about_95_times_in_100():
    draws = np.random.default_rng(0).binomial(60, 0.8, size=4000)
    held = [low <= 0.8 <= high for low, high in (wilson_interval(d, 60) for d in draws)]
    assert 0.93 < np.mean(held) < 0.97


@pytest.mark.parametrize(("successes", "total"), [(-1, 3), (4, 3)])
def test_what_is_no_share_is_refused(successes, total):
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(successes, total)
