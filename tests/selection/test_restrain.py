"""RESTRAIN: pseudo-labels by votes, the penalty, prompt weights, and their chain."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses.objectives import Policy
from jaxloop.records import Prompt, Rollout
from jaxloop.scoring import After, MajorityVote, Shuffled
from jaxloop.selection import (
    OPO,
    FirstAgreement,
    GroupAdvantage,
    LeaveOneOut,
    NegativeOffset,
    PromptWeight,
    PseudoLabels,
    groups,
    label_weights,
    vote_matrix,
)
from jaxloop.selection.pseudo_labels import gaussian
from tests.losses.policy_samples import evaluate
from tests.selection.samples import row, voted

few = settings(max_examples=30)
DR_GRPO = GroupAdvantage("none")
answers = st.text("1234.", min_size=1, max_size=8)


def test_vote_matrix():
    rewards_GM, share_M = vote_matrix(voted("a", "21.1231"))
    nan = [np.nan] * 3
    expected_GM = [
        [1, 0, 0],
        [0, 1, 0],
        nan,
        [0, 1, 0],
        [1, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
    ]
    np.testing.assert_array_equal(rewards_GM, expected_GM)
    np.testing.assert_allclose(share_M, np.array([2, 3, 1]) / 7)
    for nobody in (voted("a", "..."), row("none")):
        rewards_GM, share_M = vote_matrix(nobody)
        assert rewards_GM.shape == (len(nobody.scores), 0)
        assert share_M.shape == (0,)
    with pytest.raises(ValueError, match="MajorityVote"):
        vote_matrix(row("a", ("x", 1.0)))


@few
@given(answers)
def test_every_sample_has_one_label_and_columns_count_votes(text):
    rewards_GM, share_M = vote_matrix(voted("a", text))
    known_GM = rewards_GM[[answer != "." for answer in text]]
    assert (known_GM.sum(axis=1) == 1).all()
    np.testing.assert_allclose(known_GM.sum(axis=0) / len(text), share_M)
    assert len(share_M) == len(set(text) - {"."})


def test_label_weights():
    # Shares 0.6 and 0.4 around 1: (0.6^2 - 0.4^2) / (2 x 0.1^2) = 10.
    w_M = label_weights(np.array([0.6, 0.4]), width=0.1)
    np.testing.assert_allclose(w_M[0] / w_M[1], np.exp(10), rtol=1e-9)
    share_M = np.array([0.5, 0.3, 0.2])
    g_M = gaussian(share_M, width=0.4, centre=0.6)
    np.testing.assert_allclose(
        label_weights(share_M, width=0.4, centre=0.6), g_M / g_M.sum(), rtol=1e-12
    )
    half = gaussian(np.array([1.0, 0.5]), width=0.5)
    np.testing.assert_allclose(half, [1, np.exp(-0.5)])
    # A centre below 1 may trust a minority more.
    assert label_weights(share_M, width=0.1, centre=0.2).argmax() == 2
    assert label_weights(np.array([]), width=0.1).shape == (0,)


def test_the_width_s_two_limits():
    share_M = np.array([0.4, 0.2, 0.4])
    for width in (0.0, 1e-200, 1e-3):
        weights_M = label_weights(share_M, width=width)
        np.testing.assert_allclose(weights_M, [0.5, 0, 0.5], atol=1e-12)
    uniform_M = label_weights(share_M, width=1e6)
    np.testing.assert_allclose(uniform_M, 1 / 3, rtol=1e-9)
    with pytest.raises(ValueError, match="above 0"):
        gaussian(share_M, width=0.0)
    with pytest.raises(ValueError, match="negative"):
        PseudoLabels(DR_GRPO, -1.0)


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(1e-4, 10))
def test_label_weights_rise_with_votes(shares, width):
    weights_M = label_weights(np.array(shares), width=width)
    assert abs(weights_M.sum() - 1) < 1e-12
    assert (np.diff(weights_M[np.argsort(shares)]) >= -1e-12).all()


@few
@given(st.lists(answers, min_size=1, max_size=3), st.sampled_from([0.0, 0.3, 5.0]))
def test_the_fold_is_the_weighted_sum_over_labels(texts, width):
    """For advantages of a group alone, one label at a time."""
    scored = [voted(str(i), text) for i, text in enumerate(texts)]
    for advantage in (GroupAdvantage(), DR_GRPO, LeaveOneOut(), OPO()):
        folded_PG = PseudoLabels(advantage, width).of_scored(scored)
        assert folded_PG.dtype == np.float32
        for text, folded_G in zip(texts, folded_PG, strict=True):
            votes = Counter(text.replace(".", ""))
            total_G = np.zeros(len(text))
            shares = np.array(list(votes.values())) / len(text)
            weights = label_weights(shares, width=width)
            for label, weight in zip(votes, weights, strict=True):
                samples = [(f"{a}{i}", float(a == label)) for i, a in enumerate(text)]
                asked = row(
                    "p", *((s, None) if s[0] == "." else (s, v) for s, v in samples)
                )
                total_G += weight * np.array(groups([asked], advantage)[0].advantages)
            np.testing.assert_allclose(folded_G[: len(text)], total_G, atol=1e-5)
            assert (folded_G[len(text) :] == 0).all()


def test_the_loss_of_the_fold_is_that_of_the_labels_at_any_ratio():
    """With what `opposed` says, clipped or not; the fold alone has it at ratio 1."""
    scored = agreed(voted("a", "1121233"), 0.5)
    logp_B1 = np.array([[-0.3], [-1], [-2], [-0.7], [-0.1], [-3], [-0.4]], np.float32)
    rewards_GM, share_M = vote_matrix(scored)
    weights_M = trust(0.5) * label_weights(share_M, width=0.5)
    group = groups([scored], chain(GroupAdvantage(), minimum=0.0))[0]
    assert min(group.opposed) > 0

    def told(old_B1, **advantages):
        batch = {"mask_BC": np.ones((7, 1)), "old_logp_BC": old_B1} | advantages
        return evaluate(Policy(), logp_B1, jax.tree.map(jnp.float32, batch))[:2]

    for moved in (0.0, 0.5):
        old_B1 = logp_B1 + moved * np.array([[1, -1, 1, 1, -1, 0.1, -1]]).T
        each_MG = GroupAdvantage()(rewards_GM.T)
        apart = [told(old_B1, advantage_B=each_G) for each_G in each_MG]
        expected = jax.tree.map(
            lambda *xs: sum(w * x for w, x in zip(weights_M, xs, strict=True)), *apart
        )
        fold = {"advantage_B": np.array(group.advantages)}
        exact = told(old_B1, **fold, opposed_B=np.array(group.opposed))
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), exact, expected)
        gap = np.abs(told(old_B1, **fold)[1][0] - expected[1][0]).max()
        assert gap > 1e-3 if moved else gap < 1e-6


def test_what_opposed_says_goes_through_the_chain():
    weak, sure = agreed(voted("weak", "1234"), 0.25), agreed(voted("sure", "1112"), 0.5)
    labels = PseudoLabels(DR_GRPO, 0.5)
    inside_PG = labels.opposed([weak, sure])
    assert (inside_PG > 0).all()
    found_PG = chain(DR_GRPO).opposed([weak, sure])
    np.testing.assert_allclose(found_PG[0], 0)  # rewards := 0, so the offset is all
    np.testing.assert_allclose(found_PG[1], trust(0.5) * inside_PG[1], rtol=1e-6)
    heavy = replace(sure, prompt=replace(sure.prompt, columns={"weight": 2.0}))
    np.testing.assert_allclose(
        PromptWeight(labels).opposed([heavy])[0], 2 * inside_PG[1]
    )
    # Majority voting has one label, and nothing to oppose it.
    assert (PseudoLabels(DR_GRPO, 0.0).opposed([weak, sure])[1] == 0).all()
    for plain in (DR_GRPO, OPO(), NegativeOffset(DR_GRPO, 0.5, 1.0)):
        assert groups([sure], plain)[0].opposed == ()


@few
@given(st.integers(1, 8), st.floats(0, 2), st.floats(0, 1))
def test_a_unanimous_prompt_teaches_nothing(n, width, centre):
    scored = [voted("a", "7" * n), voted("b", "7" * n + ".")]
    advantage = PseudoLabels(GroupAdvantage(), width, centre)
    assert (advantage.of_scored(scored) == 0).all()


def chain(advantage, width=0.5, minimum=0.5, offset=0.3):
    pushed = NegativeOffset(PseudoLabels(advantage, width), minimum, offset)
    return FirstAgreement(pushed, width=0.5)


def trust(share: float) -> float:
    """u of that agreement, in the chain."""
    return float(gaussian(np.array(share), width=0.5))


@few
@given(answers, st.floats(0, 1), st.sampled_from([0.0, 0.5]))
def test_weak_prompts_get_the_offset_alone(text, share, width):
    """M < kappa: every rollout with an answer gets exactly -delta u_x."""
    scored = [agreed(voted("a", text), share), agreed(voted("b", "11"), share)]
    found_G = chain(GroupAdvantage(), width).of_scored(scored)[0, : len(text)]
    votes = Counter(text.replace(".", ""))
    if max(votes.values(), default=0) < len(text) / 2:
        offset = np.float32(-0.3) * trust(share)
        expected_G = [0 if t == "." else offset for t in text]
        np.testing.assert_allclose(found_G, expected_G, rtol=1e-6)
    else:
        plain_G = PseudoLabels(GroupAdvantage(), width).of_scored(scored[:1])[0]
        np.testing.assert_allclose(found_G, trust(share) * plain_G, rtol=1e-6)


def test_the_chain():
    scored = [
        agreed(voted("sure", "1112"), 0.5),
        agreed(voted("weak", "1234"), 0.25),
        agreed(voted("mute", "...."), 0.25),
    ]
    found_PG = chain(DR_GRPO, width=0.0).of_scored(scored)
    sure, weak = trust(0.5), trust(0.25)
    expected_PG = [[0.25 * sure] * 3 + [-0.75 * sure], [-0.3 * weak] * 4, [0] * 4]
    np.testing.assert_allclose(found_PG, expected_PG, rtol=1e-6)
    made = groups(scored, chain(DR_GRPO, width=0.0))
    # What is logged as reward is the share of votes.
    assert [s.value for s in made[0].scores] == [0.75, 0.75, 0.75, 0.25]


def test_width_0_rewards_the_majority():
    """Majority voting as a reward, where one answer has the most votes."""
    scored = [voted("a", "1122.1"), voted("b", "33345."), voted("none", "......")]
    rewards_PG = np.array(
        [[1, 1, 0, 0, np.nan, 1], [1, 1, 1, 0, 0, np.nan], [np.nan] * 6]
    )
    for advantage in (GroupAdvantage(), LeaveOneOut(), DR_GRPO):
        np.testing.assert_allclose(
            PseudoLabels(advantage, 0.0).of_scored(scored), advantage(rewards_PG)
        )
    tied_G = PseudoLabels(DR_GRPO, 0.0).of_scored([voted("tie", "1122")])
    assert (tied_G == 0).all()
    assert PseudoLabels(DR_GRPO, 0.0).of_scored([]).shape == (0, 0)


def test_the_shuffled_control_passes():
    prompts = [Prompt(str(i), "", (1,)) for i in range(6)]
    texts = ("#1", "#1", "#2", "none")
    rollouts = [
        tuple(Rollout(p.id, i, (1,), t, (), (), "eos") for i, t in enumerate(texts))
        for p in prompts
    ]
    scored = Shuffled(MajorityVote(After("#")))(prompts, rollouts)
    assert np.isfinite(PseudoLabels(GroupAdvantage(), 0.3).of_scored(scored)).all()


def agreed(scored, share, name="first_vote"):
    """The row with the first model's agreement in its scores, as `FirstVote` puts it
    there."""
    scores = (
        s if s.value is None else replace(s, components={name: share})
        for s in scored.scores
    )
    return replace(scored, scores=tuple(scores))


def test_the_first_models_agreement_weighs_a_prompt():
    shares = np.array([1.0, 0.75, 0.25, 0.0])
    scored = [agreed(voted(str(i), "1.12"), share) for i, share in enumerate(shares)]
    plain_PG = PseudoLabels(DR_GRPO, 0.5).of_scored(scored)
    assert (plain_PG[0] != 0).sum() == 3
    for width, centre in ((0.5, 1.0), (0.1, 0.25)):
        found_PG = FirstAgreement(PseudoLabels(DR_GRPO, 0.5), width, centre).of_scored(
            scored
        )
        weights_P = gaussian(shares, width=width, centre=centre)
        assert found_PG.dtype == np.float32
        np.testing.assert_allclose(found_PG, plain_PG * weights_P[:, None], rtol=1e-6)


def test_the_agreement_has_to_come_from_somewhere():
    with pytest.raises(ValueError, match="no score has a component 'first_vote'"):
        FirstAgreement(DR_GRPO, 0.5).of_scored([voted("a", "1112")])
    with pytest.raises(ValueError, match=r"width = 0\.0 must be above 0"):
        FirstAgreement(DR_GRPO, 0.0)
    mixed = [voted("mute", "...."), agreed(voted("a", "1112"), 0.5)]
    found_PG = FirstAgreement(PseudoLabels(DR_GRPO, 0.5), 0.5).of_scored(mixed)
    assert (found_PG[0] == 0).all()
    assert (found_PG[1] != 0).all()
