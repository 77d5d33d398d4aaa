"""Settings that change from round to round: values like all others, checked at once."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jaxloop.config import ConfigError, apply_overrides, to_json
from jaxloop.loop import store
from jaxloop.loop.recipe import From, Online
from jaxloop.loop.run import dry_run
from jaxloop.loop.store import Position
from jaxloop.mesh import MeshShape
from jaxloop.sampling.settings import Sampling
from jaxloop.selection import BestWorst, MinVote, VoteClusters
from tests.loop import tiny_config

DPO = tiny_config.config("dpo", "out")
assert DPO.recipe is not None
RECIPE = DPO.recipe


def with_changes(*changes: From, **others):
    return replace(DPO, recipe=replace(RECIPE, changes=changes, **others))


def test_a_change_holds_from_its_round_on_and_leaves_the_rest():
    changes = (
        From(4, "sampling.temperature", 0.5),
        From(2, "sampling.temperature", 2.0),
        From(3, "filters.0.minimum", 0.7),
        From(3, "selector", VoteClusters()),
    )
    recipe = replace(RECIPE, filters=(MinVote(0.5),), changes=changes)
    rounds = [recipe.of_round(index) for index in range(5)]
    assert [r.sampling.temperature for r in rounds] == [1, 2, 2, 0.5, 0.5]
    thresholds = [0.5, 0.5, 0.7, 0.7, 0.7]
    assert [r.filters for r in rounds] == [(MinVote(tau),) for tau in thresholds]
    assert [r.selector for r in rounds[1:3]] == [BestWorst(), VoteClusters()]
    assert rounds[0] == replace(recipe, changes=())
    assert all(r.sampling.n == RECIPE.sampling.n for r in rounds)
    assert list(recipe.versions()) == [1, 2, 3, 4]


def test_without_changes_every_round_runs_the_recipe():
    assert RECIPE.of_round(7) == RECIPE
    assert RECIPE.versions() == {1: RECIPE}


def test_the_command_line_changes_the_recipe_and_what_changes():
    base = with_changes(From(2, "sampling.temperature", 1.3))
    words = ["recipe.sampling.n=6", "recipe.changes.0.value=0.9"]
    recipe = apply_overrides(base, [*words, "recipe.changes.0.round=3"]).recipe
    assert [r.sampling.temperature for r in map(recipe.of_round, range(3))] == [
        1,
        1,
        0.9,
    ]
    assert {r.sampling.n for r in recipe.versions().values()} == {6}
    assert to_json(base)["recipe"]["changes"][0]["value"] == 1.3


def test_of_all_rounds_the_longest_completions_have_room():
    longer = From(2, "sampling.max_new_tokens", 9)
    assert replace(RECIPE, changes=(longer,)).max_new_tokens == 9
    assert replace(RECIPE, extra=Sampling(max_new_tokens=11)).max_new_tokens == 11


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("sampling.temprature", 1.0), "Sampling has no field 'temprature'"),
        (("filters.0.minimum", 0.7), "has no fields, so no '0.minimum'"),
        (("sampling.top_p.x", 1.0), "'top_p' has no fields"),
        (("sampling.temperature", -1.0), "temperature = -1.0 must be at least 0"),
        (("sampling.temperature", "hot"), 'temperature = "hot" must be float'),
        (("selector", None), "from round 2 on: a pairwise objective wants a selector"),
    ],
)
def test_a_change_that_does_not_fit_is_said_before_the_run(change, words):
    found = with_changes(From(2, *change)).validate()
    assert any(words in problem for problem in found), found
    assert all("recipe.changes" in problem for problem in found)


def test_what_cannot_change_and_when():
    with pytest.raises(ValueError, match="at least 2"):
        From(1, "sampling.n", 4)
    with pytest.raises(ValueError, match=r"schedule\.epochs stays the same"):
        From(2, "schedule.epochs", 4)
    online = with_changes(From(2, "sampling.n", 4), schedule=Online(2))
    assert any("Rounds schedule" in problem for problem in online.validate())


def test_extra_samples_want_a_selector_that_heeds_them():
    hot = Sampling(n=2, rows=16)
    found = with_changes(extra=hot).validate()
    assert any("only ever rejected" in problem for problem in found)
    assert with_changes(extra=hot, selector=VoteClusters()).validate() == []


def test_the_rows_of_every_round_are_cut_by_the_mesh():
    config = replace(with_changes(From(2, "sampling.rows", 6)), mesh=MeshShape(4, 1, 1))
    found = config.problems(DPO.model.shape, 4)
    assert [problem for problem in found if "recipe.sampling.rows = 6" in problem]


def test_a_dry_run_tells_the_changes():
    config = with_changes(From(2, "sampling.temperature", 1.3))
    assert DPO.sft is not None
    stage = replace(DPO.sft, batch_size=8)
    text = dry_run(replace(config, sft=stage, mesh=MeshShape(8, 1, 1)))
    assert "from round 2 on" in text
    assert "sampling.temperature = 1.3" in text


def test_the_best_is_measured_somehow():
    best = replace(DPO.checkpoint, best="eval/accuracy")
    blind = replace(DPO.evaluation, scorer=None)
    (problem,) = replace(DPO, checkpoint=best, evaluation=blind).validate()
    assert "no evaluation.scorer" in problem


def test_a_best_that_is_not_measured_is_said_at_the_first_look():
    best = replace(DPO.checkpoint, best="eval/acuracy")
    bench = SimpleNamespace(config=replace(DPO, checkpoint=best))
    measured = {"eval/accuracy": 0.5}
    with pytest.raises(
        ConfigError, match=r"eval/acuracy is not measured.*eval/accuracy"
    ):
        store.save(bench, Position("recipe"), {}, measured)  # pyright: ignore


def test_a_look_at_which_nothing_could_be_judged_is_not_the_best():
    """And ends nothing: the next one may be read again."""
    best = replace(DPO.checkpoint, best="eval/accuracy")
    given = []

    def saved(*arguments, metrics, block):
        given.append(metrics)

    bench = SimpleNamespace(
        config=replace(DPO, checkpoint=best),
        metrics=SimpleNamespace(offset=lambda: 0),
        checkpoints=SimpleNamespace(save=saved),
        attempt=SimpleNamespace(spending=lambda what: nullcontext(), kept=lambda: None),
    )
    unread = {"eval/judge/unjudged_frac": 1.0}
    store.save(bench, Position("recipe"), {}, unread)  # pyright: ignore
    assert given == [unread]
