"""A configuration's contradictions: all of them, in words that name the setting."""

from dataclasses import replace

import pytest

from jaxloop.loop.recipe import Evaluation, Online, Rounds
from jaxloop.losses.objectives import Pairwise, Policy
from jaxloop.mesh import MeshShape
from jaxloop.selection import AllCorrect, GroupAdvantage
from tests.loop import tiny_config


def changed(kind="dpo", recipe=(), **changes):
    """The tiny config with changes; those of the recipe apart (None: without one)."""
    base = tiny_config.config(kind, "out")
    own = None if recipe is None else replace(base.recipe, **dict(recipe))
    return replace(base, recipe=own, **changes)


def problems(config, devices=1):
    return config.problems(config.model.shape, devices)


@pytest.mark.parametrize("kind", ["dpo", "rft", "grpo", "semi_online"])
def test_the_tiny_configs_are_sound(kind):
    assert problems(changed(kind)) == []


CASES = {
    "groups and selectors": (
        {"kind": "grpo", "recipe": {"selector": AllCorrect()}},
        "no `selector`",
    ),
    "policy in rounds": (
        {"kind": "grpo", "recipe": {"schedule": Rounds()}},
        "Online schedule",
    ),
    "pairs from a selector of demonstrations": (
        {"recipe": {"selector": AllCorrect()}},
        "selector of pairs",
    ),
    "demonstrations online": (
        {"kind": "rft", "recipe": {"schedule": Online()}},
        "Rounds schedule",
    ),
    "advantage without policy": (
        {"recipe": {"advantage": GroupAdvantage()}},
        "policy objectives only",
    ),
    "nothing to do": (
        {"sft": None, "recipe": None, "evaluation": Evaluation()},
        "nothing to do",
    ),
    "no batch": ({"recipe": {"schedule": Rounds(batch_size=0)}}, "at least 1"),
    "accumulation": (
        {"recipe": {"schedule": Rounds(batch_size=8, accumulation=3)}},
        "nearest: 6",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_contradiction_is_named(case):
    changes, words = CASES[case]
    found = problems(changed(**changes))
    assert any(words in problem for problem in found), found


def test_a_group_of_one_has_no_advantage():
    base = tiny_config.config("grpo", "out")
    sampling = replace(base.recipe.sampling, n=1)
    found = problems(changed("grpo", recipe={"sampling": sampling}))
    assert any("at least 2 samples" in problem for problem in found)


def test_all_problems_come_at_once():
    config = changed(
        recipe={
            "objective": Policy(),
            "selector": AllCorrect(),
            "schedule": Rounds(batch_size=6),
        },
        mesh=MeshShape(4, 1, 1),
    )
    found = problems(config, devices=4)
    assert len(found) == 3
    assert any("batch_size = 6" in problem and "8" in problem for problem in found)


def test_heads_that_the_mesh_cannot_cut_fail_before_compiling():
    config = changed(mesh=MeshShape(1, 1, 4))
    found = problems(config, devices=4)
    assert any("heads = 2" in problem for problem in found)


def test_a_pairwise_objective_of_another_beta_is_no_problem():
    assert problems(changed(recipe={"objective": Pairwise(beta=0.5)})) == []
