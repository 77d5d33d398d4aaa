"""Judges in a run: what cannot judge shows at once, what does not fit is counted, and
what was said is not asked again."""

import io
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise

import jax
import pytest

from jaxloop.config import ConfigError
from jaxloop.loop import models, said_before
from jaxloop.loop.folder import RunFolder, read_records, write_records
from jaxloop.loop.recipe import Evaluation, From
from jaxloop.loop.run import dry_run, evaluate, run
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.records import Judgement, Prompt, Rollout, Scored
from jaxloop.scoring import ImplicitReward, Placed, PTrue, Routed, Sum
from jaxloop.selection import BestWorst, JudgePairs, Streams
from tests.loop import random_judge, tiny_config
from tests.loop.test_judge_server import opened

JUDGED = tiny_config.config("judged", "").recipe
JUDGE = JUDGED.scorer


def judged_by(judge, out="out", **changes):
    """The tiny rounds with that scorer, on all devices."""
    base = tiny_config.config("judged", out, mesh=MeshShape(8, 1, 1), **changes)
    return replace(
        base,
        sft=replace(base.sft, batch_size=8),
        recipe=replace(base.recipe, scorer=judge),
    )


def problems(config, devices=8):
    return config.problems(config.model.shape, devices)


def test_the_rows_of_every_judge_must_fit_the_mesh():
    assert problems(judged_by(JUDGE)) == []
    narrow = replace(JUDGE, sampling=replace(JUDGE.sampling, rows=12), name="narrow")
    config = judged_by(
        Sum((JUDGE, Routed((("a", narrow),), JUDGE.truth))),
        evaluation=Evaluation(scorer=replace(narrow, by="policy")),
    )
    found = problems(config)
    assert len(found) == 2
    inner = "recipe.scorer.scorers.1.routes.0.1.sampling.rows = 12"
    assert found[0].startswith(inner)
    assert "evaluation.scorer.sampling.rows = 12" in found[1]
    assert "nearest: 8 or 16" in found[0]


def test_a_judge_without_room_or_model_is_named_at_once(tmp_path):
    long = replace(JUDGE, sampling=replace(JUDGE.sampling, max_new_tokens=2047))
    with pytest.raises(ConfigError, match=r"recipe\.scorer: its template has 1 tokens"):
        dry_run(judged_by(long))
    elsewhere = replace(JUDGE, by=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"recipe\.scorer\.by: .*nowhere"):
        dry_run(judged_by(elsewhere))


def test_the_evaluated_model_is_not_its_own_first_model(tmp_path):
    for scorer in (replace(JUDGE, by="first"), ImplicitReward()):
        config = judged_by(JUDGE, tmp_path / "out", evaluation=Evaluation(scorer))
        assert problems(config) == []
        with pytest.raises(ConfigError, match="'first' is the model that a recipe"):
            evaluate(config)
    assert not (tmp_path / "out-eval").exists()


def test_what_reads_log_probabilities_has_the_same_room(tmp_path):
    judge = PTrue("{question}{answer}=", words=("1", "22"), guarded=False)
    base = judged_by(judge, tmp_path / "out")
    shape = replace(base.model.shape, max_positions=18)
    with opened(replace(base, model=replace(base.model, shape=shape))) as (
        bench,
        params,
    ):
        prompt = bench.data.train[0]
        texts = "9" * 12, "9" * 13  # behind three tokens, before `=` and `22`
        group = [
            Rollout(prompt.id, i, (), text, (), (), "eos")
            for i, text in enumerate(texts)
        ]
        scorer = models.bound(bench, judge, params, jax.random.key(0), version=0)
        (row,) = scorer([prompt], [tuple(group)])
    assert len(prompt.token_ids) == 3
    assert [score.value is None for score in row.scores] == [False, True]


def test_a_judge_placed_on_a_mesh_of_its_own(tmp_path):
    """The policy's batch has eight parts, the judge's four, and its heads are cut in
    two. It says, in its own tokens, what it says when it is cut as the policy is."""
    where = str(random_judge.save(tmp_path / "hf", ["what is 1+2? 3, 7 or 12"]))
    sampling = replace(JUDGE.sampling, n=2, rows=8, max_new_tokens=6, temperature=0.0)
    base = judged_by(replace(JUDGE, by=where), tmp_path / "out")
    said = []
    with opened(base) as (bench, params):
        texts = {str(i): f"{i}+2" for i in range(5)}
        asked = models.LoopModels(bench, params, jax.random.key(0), 0)
        for by in (where, Placed(where, MeshShape(4, 1, 2))):
            groups = asked.write(asked.prompts(texts, by=by), sampling, by=by)
            said.append([rollout.token_ids for group in groups for rollout in group])
            assert asked.prompts(texts) != asked.prompts(texts, by=by)
        kept = [value for name, value in bench.kept.items() if "engine" in name]
    assert said[0] == said[1]
    assert [dict(engine.mesh.shape)["tensor"] for engine, _ in kept] == [1, 2]


def test_a_mesh_that_a_judge_does_not_fit_is_named_at_once(tmp_path):
    where = str(random_judge.save(tmp_path / "hf", ["1"]))
    for mesh, fault in (
        (MeshShape(3, 1, 1), r"recipe\.scorer\.by: mesh .* there are 8"),
        (MeshShape(1, 1, 8), r"recipe\.scorer\.by\.mesh: .*cannot be cut into 8"),
        (MeshShape(4, 1, 2), r"recipe\.scorer\.sampling\.rows = 6 .* 4 parts"),
    ):
        sampling = replace(JUDGE.sampling, rows=6)
        config = judged_by(replace(JUDGE, by=Placed(where, mesh), sampling=sampling))
        with pytest.raises(ConfigError, match=fault):
            dry_run(config)


@pytest.mark.parametrize("by", ["first", "another/model"])
def test_only_its_own_judgements_are_paired(by):
    base = tiny_config.config("meta", "out")
    meta = base.recipe.scorer
    other = replace(meta, judge=replace(meta.judge, by=by))
    both = Streams((BestWorst(), JudgePairs()))
    for scorer in (other, Sum((other,))):
        recipe = replace(base.recipe, scorer=scorer, selector=both)
        (found,) = problems(replace(base, recipe=recipe), 1)
        assert f"judge.by = {by!r}" in found
    judging = replace(meta, meta=replace(meta.meta, by=by))
    for recipe in (
        replace(base.recipe, scorer=other, selector=BestWorst()),
        replace(base.recipe, scorer=judging, selector=both),
    ):
        assert problems(replace(base, recipe=recipe), 1) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose first model judges, here and in evaluations, and for which some
    requests are too long: its folder, what it printed, what was asked of the judges."""
    out = tmp_path_factory.mktemp("judges") / "out"
    base = judged_by(replace(JUDGE, by="first"), out)
    schedule = replace(base.recipe.schedule, prompts=0)
    cold = replace(base.recipe.sampling, temperature=0.2)  # answers come up again
    config = replace(
        base,
        model=replace(base.model, shape=replace(base.model.shape, max_positions=18)),
        recipe=replace(base.recipe, schedule=schedule, sampling=cold),
        evaluation=replace(
            base.evaluation, scorer=replace(JUDGE, by="first", name="held_out"), every=2
        ),
    )
    asked, plain = [], models.sample

    def sample(bench, params, prompts, *rest, **more):
        asked.extend(prompt.id for prompt in prompts)
        return plain(bench, params, prompts, *rest, **more)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(models, "sample", sample)
        assert run(config) == 0
    return out, printed.getvalue(), asked


def lines(out, phase: str):
    found = read_metrics(out / "metrics.jsonl")
    return [line for line in found if line["phase"] == phase]


def judgements(file) -> dict[str, Judgement]:
    rows = read_records(file, Scored)
    return {j.prompt.id: j for row in rows for j in row.judgements}


def test_a_request_that_does_not_fit_is_counted_and_ends_nothing(finished):
    out, printed, _ = finished
    shares = [line["judge/too_long_frac"] for line in lines(out, "round")]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares), shares
    assert printed.count("requests to first are longer than the 10 tokens") == 1
    for file in (out / "records").glob("round_*/rollouts.jsonl"):
        for row in read_records(file, Scored):
            for judgement in row.judgements:
                fits = len(judgement.prompt.token_ids) <= 10
                assert len(judgement.rollouts) == 2 * fits
                score = row.scores[judgement.of[0]]
                assert fits or (score.status, score.value) == ("unscored", None)


def test_the_first_model_says_the_same_and_is_asked_once(finished):
    """In the supervised stage the weights of the moment judge; then the model that the
    recipe starts from, which keeps what it said."""
    out, _, asked = finished
    looks = {
        read_records(file, Scored)[0].rollouts[0].version: judgements(file)
        for file in (out / "records" / "eval").glob("*.jsonl")
    }
    in_order = [looks[version] for version in sorted(looks)]
    rounds = [
        judgements(out / "records" / f"round_{i:03d}" / "rollouts.jsonl")
        for i in range(2)
    ]
    assert sorted(looks)[:2] == [2, 4]  # one in the first stage, one behind it
    wanted = Counter(in_order[0].keys())
    for files in (in_order[1:], rounds):
        for before, now in zip([{}, *files], files, strict=False):
            both = before.keys() & now.keys()
            assert all(now[id].rollouts == before[id].rollouts for id in both)
            wanted.update(now.keys() - before.keys())
        assert any(a.keys() & b.keys() for a, b in pairwise(files))
    long = {
        id
        for found in (*in_order, *rounds)
        for id, judgement in found.items()
        if not judgement.rollouts
    }
    named = Counter(id for id in asked if ":canary:" not in id)
    assert named == Counter({id: n for id, n in wanted.items() if id not in long})


def judgement(id: str, ids: tuple[int, ...], text: str) -> Judgement:
    asked = Prompt(id, "", ids)
    return Judgement(asked, (0,), (Rollout(id, 0, (1,), text, (), (), "eos"),), (None,))


def look(version: int, *judgements: Judgement) -> Scored:
    rollout = Rollout("p", 0, (1,), "", (), (), "eos", version)
    return Scored(Prompt("p", "", (1,)), (rollout,), (), judgements)


def test_only_the_same_request_was_answered_before(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    rows = [look(0, judgement("a", (1, 2), "said"), judgement("b", (3,), "other"))]
    write_records(file, rows)
    requests = [Prompt("a", "", (1, 2)), Prompt("b", "", (4,)), Prompt("c", "", (1,))]
    found = said_before.said_in([file], requests)
    assert {id: [r.text for r in told] for id, told in found.items()} == {"a": ["said"]}


def test_the_look_before_is_the_recipe_s(tmp_path):
    """A killed run finds looks that are still to come, and those of the first stage had
    another first model."""
    folder = RunFolder(tmp_path)
    assert said_before.look_before(folder, 9) == []
    for name, version in [("step_2", 2), ("round_000", 4), ("step_6", 6)]:
        write_records(folder.evaluation(name), [look(version)])
    found = [said_before.look_before(folder, step) for step in (2, 4, 5, 6, 7)]
    names = [[file.stem for file in files] for files in found]
    assert names == [[], [], ["round_000"], ["round_000"], ["step_6"]]


def test_rounds_of_another_scorer_are_no_help(tmp_path):
    folder, change = RunFolder(tmp_path), From(3, "scorer.sampling.temperature", 0.5)
    files = said_before.earlier_rounds(folder, replace(JUDGED, changes=(change,)), 3)
    assert files == [folder.round(2) / "rollouts.jsonl"]
    assert len(said_before.earlier_rounds(folder, JUDGED, 3)) == 3


def test_judgements_are_trained_on_online(tmp_path):
    config = tiny_config.config("meta", tmp_path / "out", mesh=MeshShape(8, 1, 1))
    assert run(replace(config, sft=replace(config.sft, batch_size=8))) == 0
    steps = lines(tmp_path / "out", "online")
    assert len(steps) == 6
    for name in ("BestWorst", "JudgePairs"):
        assert sum(line[f"pairs/{name}/count"] for line in steps) > 0, name
    assert all(line["skipped_updates"] == 0 for line in steps)
