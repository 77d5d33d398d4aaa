"""Masked sums and metrics that merge."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses.reduce import (
    Max,
    Mean,
    Min,
    collapse,
    masked_mean,
    masked_sum,
    merge,
    values,
)


def test_masked_equals_sliced_whatever_the_masked_entries_hold():
    x_BC = jnp.array([[1.0, 2.0, jnp.nan], [4.0, jnp.inf, -jnp.inf]])
    mask_BC = jnp.array([[1, 1, 0], [1, 0, 0]])

    def squares(x_BC):
        return masked_sum(x_BC**2, mask_BC)

    assert squares(x_BC) == 1 + 4 + 16
    np.testing.assert_array_equal(masked_mean(x_BC, mask_BC, axis=1), [1.5, 4.0])
    gradient_BC = jax.grad(lambda x_BC: masked_sum(x_BC, mask_BC))(x_BC)
    np.testing.assert_array_equal(gradient_BC, mask_BC)


def test_an_empty_mask_is_zero_as_a_sum_and_unknown_as_a_metric():
    x_B, none_B = jnp.ones(3), jnp.zeros(3)
    assert masked_mean(x_B, none_B) == 0
    for metric in (Mean, Max, Min):
        assert np.isnan(metric.of(x_B, none_B).value())


def metrics_of(x_B, mask_B):
    return {name: kind.of(x_B, mask_B) for name, kind in KINDS.items()}


KINDS = {"mean": Mean, "max": Max, "min": Min}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans()), min_size=1),
    st.data(),
)
def test_any_split_gives_the_value_of_the_whole(rows, data):
    cut = data.draw(st.integers(1, len(rows)))
    x_B, mask_B = (np.array(column) for column in zip(*rows, strict=True))
    parts = [(x_B[:cut], mask_B[:cut])]
    if cut < len(rows):
        parts.append((x_B[cut:], mask_B[cut:]))
    merged = {}
    for part in parts:
        merged = merge(merged, metrics_of(*map(jnp.asarray, part)))
    kept = x_B[mask_B.astype(bool)]
    expected = dict.fromkeys(KINDS, np.nan)
    if len(kept):
        expected = {"mean": kept.mean(), "max": kept.max(), "min": kept.min()}
    for name, value in values(merged).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3)


def test_scan_stacks_what_collapse_merges():
    x_NB = jnp.arange(12.0).reshape(4, 3)
    mask_NB = x_NB % 2

    @jax.jit
    def run(x_NB, mask_NB):
        def body(_, chunk):
            return (), metrics_of(*chunk)

        return values(collapse(jax.lax.scan(body, (), (x_NB, mask_NB))[1]))

    assert run(x_NB, mask_NB) == {"mean": 6.0, "max": 11.0, "min": 1.0}


def test_a_metric_carries_no_gradient():
    gradient = jax.grad(lambda x: Mean.of(x, jnp.ones(2)).total)(jnp.ones(2))
    np.testing.assert_array_equal(gradient, 0)


def test_merge_keeps_names_that_one_side_lacks():
    one = jnp.ones(1)
    a, b = {"a": Mean.of(one, one)}, {"b": Max.of(one, one)}
    assert values(merge(a, b)) == {"a": 1.0, "b": 1.0}
