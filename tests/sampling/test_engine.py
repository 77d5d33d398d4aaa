"""The engine: same rollouts however they are batched, and nothing compiled twice."""

import gc
import itertools
import re
from dataclasses import replace

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.models.decoder import unembedding
from jaxloop.records import Prompt
from jaxloop.sampling.engine import Engine, cache_bytes, common_head
from jaxloop.sampling.harvest import Table
from jaxloop.sampling.settings import Sampling
from jaxloop_kernels.lm_head.reference import lm_head
from tests.sampling.tiny import MODEL, SHAPE, Letters, prompts, random_params

KEY = jax.random.key(7)
LONGEST = 48
BASE = Sampling(
    n=3, max_new_tokens=10, rows=4, prefill_rows=2, chunk=4, temperature=1.3
)


@pytest.fixture(scope="module")
def engine():
    return Engine(MODEL, Letters(), make_mesh(MeshShape(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def params():
    return random_params()


@pytest.fixture(scope="module")
def many(engine, params):
    """More samples than rows: every row is used again and again."""
    return engine.sample(params, prompts(7), BASE, key=KEY)


@jax.jit
def full_forward(params, ids_BT, temperature):
    positions_BT = jnp.arange(ids_BT.shape[1])[None]
    hidden_BTD, _ = MODEL.apply({"params": params}, ids_BT, positions_BT)
    vocab_VD, target_BT = unembedding(params), ids_BT[:, 1:]
    head = lm_head(hidden_BTD[:, :-1], vocab_VD, target_BT, temperature=temperature)
    return head.logp_BT[0], head.hit_BT[0]


def trainer_logps(params, prompt, rollout, temperature):
    """As the trainer computes them: one forward pass over prompt and completion."""
    ids = prompt.token_ids + rollout.token_ids
    padded_BT = np.array([ids + (0,) * (LONGEST - len(ids))])
    ours = slice(len(prompt.token_ids) - 1, len(ids) - 1)
    return [np.asarray(x)[ours] for x in full_forward(params, padded_BT, temperature)]


def test_rollouts_are_complete_and_in_order(many):
    assert len(many) == 7
    reasons = set()
    for prompt, rollouts in zip(prompts(7), many, strict=True):
        assert [r.prompt_id for r in rollouts] == [prompt.id] * 3
        assert [r.index for r in rollouts] == [0, 1, 2]
        for r in rollouts:
            assert len(r.logps) == len(r.drawn_logps) == len(r.token_ids)
            ends = [i for i in r.token_ids if i in Letters().eos_ids]
            assert ends == ([r.token_ids[-1]] if r.stop == "eos" else [])
            assert r.stop == "eos" or len(r.token_ids) == BASE.max_new_tokens
            reasons.add(r.stop)
            assert r.text == Letters().decode(r.token_ids)
            assert r.logps == r.drawn_logps
    assert reasons == {"eos", "length"}  # else the test shows little
    used = {r.token_ids[-1] for row in many for r in row if r.stop == "eos"}
    assert used == set(Letters().eos_ids)


def test_log_probabilities_are_the_trainers(params, many):
    for prompt, rollouts in zip(prompts(3), many[:3], strict=True):
        for r in rollouts[:2]:
            logp_C, _ = trainer_logps(params, prompt, r, BASE.temperature)
            np.testing.assert_allclose(r.logps, logp_C, atol=1e-5)


def test_a_sample_does_not_depend_on_the_batch(engine, params, many):
    """Alone, in another order, with others: the same bits."""
    chosen = prompts(7)
    alone = engine.sample(params, [chosen[4]], BASE, key=KEY)
    assert alone[0] == many[4]
    backwards = engine.sample(params, chosen[::-1], BASE, key=KEY)
    assert backwards[::-1] == many


def test_more_rows_at_once_draw_the_same_tokens(engine, params, many):
    """Another bucket shape: same draws, log-probabilities up to rounding."""
    wide = replace(BASE, rows=24, prefill_rows=8)
    for ours, theirs in zip(
        many, engine.sample(params, prompts(7), wide, key=KEY), strict=True
    ):
        assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)


def test_samples_of_a_prompt_differ_and_do_not_depend_on_n(engine, params, many):
    assert len({r.token_ids for r in many[1]}) == 3
    one = engine.sample(params, prompts(7), replace(BASE, n=1), key=KEY)
    assert [r[0] for r in one] == [r[0] for r in many]


def test_the_key_decides(engine, params, many):
    again = engine.sample(params, prompts(7), BASE, key=KEY)
    assert again == many
    other = engine.sample(params, prompts(7), BASE, key=jax.random.key(8))
    assert sum(a != b for a, b in zip(other, many, strict=True)) >= 6


def test_any_kind_of_key_will_do(engine, params, many):
    rbg = jax.random.key(7, impl="rbg")
    assert engine.sample(params, prompts(2), BASE, key=rbg) != many[:2]
    assert engine.sample(params, prompts(7), BASE, key=jax.random.PRNGKey(7)) == many


def test_nothing_is_compiled_in_steady_state(engine, params, many):
    before = dict(engine.compiled)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name)
    )
    try:
        # Other prompts, another number of them, another n, stop strings, another key.
        other = replace(BASE, n=2, stop=("q",))
        engine.sample(params, prompts(5, seed=3), other, key=jax.random.key(1))
    finally:
        jax.monitoring.clear_event_listeners()
    assert dict(engine.compiled) == before
    assert not [name for name in compilations if "compile" in name]


def test_a_longer_prompt_takes_its_own_bucket_and_leaves_others_alone(
    engine, params, many
):
    long = Prompt("long", "", tuple(range(3, 33)))
    first, second = engine.sample(params, [long, prompts(7)[2]], BASE, key=KEY)
    assert second == many[2]
    logp_C, _ = trainer_logps(params, long, first[0], BASE.temperature)
    np.testing.assert_allclose(first[0].logps, logp_C, atol=1e-5)


def test_greedy_is_the_argmax_of_the_full_forward(engine, params):
    greedy = replace(BASE, temperature=0.0, n=2)
    for prompt, (r, copy) in zip(
        prompts(3), engine.sample(params, prompts(3), greedy, key=KEY), strict=True
    ):
        logp_C, hit_C = trainer_logps(params, prompt, r, temperature=1.0)
        assert hit_C.all()
        np.testing.assert_allclose(r.logps, logp_C, atol=1e-5)
        assert set(r.drawn_logps) == {0.0}
        assert copy.token_ids == r.token_ids
    top_1 = replace(greedy, temperature=1.0, top_k=1)
    ours = engine.sample(params, prompts(3), greedy, key=KEY)
    theirs = engine.sample(params, prompts(3), top_1, key=KEY)
    assert [r[0].token_ids for r in ours] == [r[0].token_ids for r in theirs]


def test_cut_distributions_report_both_log_probabilities(engine, params):
    sampling = replace(BASE, top_p=0.6, min_p=0.01)
    rollouts = engine.sample(params, prompts(3), sampling, key=KEY)
    for prompt, (r, *_) in zip(prompts(3), rollouts, strict=True):
        logp_C, _ = trainer_logps(params, prompt, r, sampling.temperature)
        np.testing.assert_allclose(r.logps, logp_C, atol=1e-5)
        gap = np.array(r.drawn_logps) - np.array(r.logps)
        # Renormalised: what was kept has at least 0.6 of the mass, and not all.
        assert (gap > 0).all()
        assert (gap < -np.log(0.6) + 1e-5).all()


def test_stop_strings_end_rows(engine, params, many):
    """The same draws, cut after the first stop string."""
    stops = ("a", "7")
    stopped = engine.sample(params, prompts(7), replace(BASE, stop=stops), key=KEY)
    seen = 0
    for before, after in zip(sum(many, ()), sum(stopped, ()), strict=True):
        ends = [before.text.index(s) + 1 for s in stops if s in before.text]
        if not ends:
            assert after == before
            continue
        seen += 1
        assert (after.stop, after.text) == ("stop", before.text[: min(ends)])
        assert after.token_ids == before.token_ids[: min(ends)]
        assert after.logps == before.logps[: min(ends)]
    assert seen > 3


def test_progress_and_version(engine, params):
    seen = []
    rollouts = engine.sample(
        params,
        prompts(7),
        BASE,
        key=KEY,
        version=5,
        on_progress=lambda *counts: seen.append(counts),
    )
    tokens = sum(len(r.token_ids) for row in rollouts for r in row)
    assert seen[-1] == (21, 21, tokens)
    assert seen == sorted(seen)
    assert {r.version for row in rollouts for r in row} == {5}


def test_stream_shows_the_text_as_it_grows(engine, params):
    texts = []
    rollout = engine.stream(params, prompts(7)[1], BASE, key=KEY, on_text=texts.append)
    assert texts[-1] == rollout.text
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert len(texts) == -(-len(rollout.token_ids) // BASE.chunk)


def test_new_parameters_are_used(engine, params, many):
    other = random_params(seed=1)
    assert engine.sample(other, prompts(7), BASE, key=KEY) != many
    assert engine.sample(params, prompts(7), BASE, key=KEY) == many
    engine.release()
    assert engine.sample(params, prompts(7), BASE, key=KEY) == many


def test_no_device_memory_is_left_behind(engine, params):
    def held():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    engine.sample(params, prompts(7), BASE, key=KEY)
    before = held()
    for seed in range(3):
        engine.sample(params, prompts(7), BASE, key=jax.random.key(seed))
    assert held() <= before + 64  # a key


def test_the_cache_is_updated_in_place(engine, params):
    """The compiled loop copies no layer's cache, and gives the donated one back."""
    state = engine.empty_state(BASE, bucket=16)
    rows = Table.empty(BASE.rows, BASE.max_new_tokens).rows
    with jax.set_mesh(engine.mesh):
        weights = engine._prepared(params)
        args = (MODEL, BASE, engine.size, (1,), weights, state, rows, KEY)
        text = engine._decode.lower(*args).compile().as_text()
        engine._decode(*args)
    for leaf in jax.tree.leaves(state.caches[0]):
        size = ",".join(map(str, leaf.shape))
        assert f"f32[{size}]" in text
        assert not re.search(rf"f32\[{size}\]\S* copy\(", text)
        assert leaf.is_deleted()


def test_no_prompts_no_rollouts(engine, params):
    assert engine.sample(params, [], BASE, key=KEY) == []


def with_ids(*ids):
    return [Prompt(f"x{i}", "", tuple(t)) for i, t in enumerate(ids)]


@pytest.mark.parametrize(
    ("wrong", "sampling", "message"),
    [
        (with_ids((3,) * 2040), BASE, r"no room.*2040 tokens.*longer than 2038"),
        (with_ids(()), BASE, "'x0' has no tokens"),
        (with_ids((3, 99)), BASE, "token 99"),
        (with_ids((3,)) * 2, BASE, "more than once"),
        (with_ids((3,) * 20), replace(BASE, prompt_buckets=(8,)), "prompt_buckets"),
    ],
)
def test_what_cannot_be_sampled_says_why(engine, params, wrong, sampling, message):
    before = dict(engine.compiled)
    with pytest.raises(ValueError, match=message):
        engine.sample(params, wrong, sampling, key=KEY)
    assert dict(engine.compiled) == before


def test_parameters_that_are_not_finite_are_an_error(engine, params):
    broken = params | {"final_norm_D": params["final_norm_D"] * jnp.nan}
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.sample(broken, prompts(1), BASE, key=KEY)


def test_cache_bytes_counts_the_arrays(engine):
    slots = BASE.slots(16)
    state = jax.eval_shape(lambda: engine._empty(MODEL, BASE.rows, slots))
    decoding = sum(x.size * 4 for x in jax.tree.leaves(state.caches))
    a_slot = 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_dim * 4
    expected = decoding + a_slot * BASE.prefill_rows * 16
    assert cache_bytes(SHAPE, BASE, 11, "float32") == expected
    assert cache_bytes(SHAPE, BASE, 11, "bfloat16", parts=2) == expected / 4


HEAD = tuple(np.random.default_rng(3).integers(3, SHAPE.vocab, 70).tolist())


def behind_a_head(count: int, longest: int = 40) -> list[Prompt]:
    return [
        replace(prompt, token_ids=HEAD + prompt.token_ids)
        for prompt in prompts(count, longest=longest)
    ]


def test_a_shared_head_changes_nothing_but_rounding(engine, params):
    asked = behind_a_head(7)
    assert common_head(asked) == 64  # 70, in whole blocks
    plain = engine.sample(params, asked, BASE, key=KEY)
    shared = engine.sample(params, asked, BASE, key=KEY, shared=64)
    for ours, theirs in zip(sum(shared, ()), sum(plain, ()), strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)
    assert len({r.token_ids for row in shared for r in row}) > 15


def test_samples_behind_a_head_do_not_depend_on_the_batch(engine, params):
    asked = behind_a_head(7)
    many = engine.sample(params, asked, BASE, key=KEY, shared=64)
    few = engine.sample(params, asked[5:2:-1], BASE, key=KEY, shared=64)
    assert few == many[5:2:-1]
    before = dict(engine.compiled)
    engine.sample(params, asked[:2], BASE, key=jax.random.key(1), shared=64)
    assert dict(engine.compiled) == before


def test_what_follows_a_head_is_padded_by_itself(engine, params):
    """A prompt of 70 + 5 tokens takes 64 + 16 slots, not 128."""
    asked = behind_a_head(2, longest=5)
    shapes = []
    run, engine._prefill_rest = (
        engine._prefill_rest,
        lambda *args: shapes.append(args[3].shape) or run(*args),
    )
    try:
        engine.sample(params, asked, BASE, key=KEY, shared=64)
    finally:
        engine._prefill_rest = run
    assert shapes == [(BASE.prefill_rows, 16)]


@pytest.mark.parametrize(
    ("ids", "shared"),
    [
        ([], 0),
        ([(5,) * 80], 0),
        ([(5,) * 80, (5,) * 80], 64),
        ([(5,) * 64, (5,) * 90], 32),
        ([(5,) * 70, (5,) * 50 + (6,) * 30, (5,) * 90], 32),
        ([(5,) * 20, (5,) * 90], 0),
    ],
)
def test_the_head_that_prompts_share(ids, shared):
    assert common_head(with_ids(*ids)) == shared


def test_a_head_that_is_not_shared_is_an_error(engine, params):
    with pytest.raises(ValueError, match="first 64 tokens"):
        engine.sample(params, prompts(3), BASE, key=KEY, shared=64)


def test_the_longest_prompt_that_fits(engine):
    assert engine.room(BASE) == SHAPE.max_positions - BASE.max_new_tokens
    assert engine.room(replace(BASE, prompt_buckets=(64, 256))) == 256
