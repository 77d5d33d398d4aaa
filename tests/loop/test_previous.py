"""The model of the round before, as scorers meet it."""

from dataclasses import dataclass, replace

import pytest

from jaxloop.config import ConfigError
from jaxloop.loop.folder import read_records
from jaxloop.loop.run import dry_run, run
from jaxloop.mesh import MeshShape
from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring import Sum, WithPrevious
from jaxloop.scoring.scorer import OfModels, score_each
from tests.loop import killed, tiny_config

ASKED = Prompt("probe", "12+", (3, 4, 12))
TOLD = Rollout("probe", 0, (5, 6, 1), "34", (), (), "eos")


@dataclass(frozen=True)
class Probe(OfModels):
    """Of every completion the likelihood of one and the same text: it tells models
    apart, not completions."""

    name: str = "probe"

    def score(self, models, prompts, rollouts) -> list[Scored]:
        (logp,) = models.logps([(ASKED, TOLD)])
        score = Score(float(logp), components={self.name: float(logp)})
        return score_each(prompts, rollouts, lambda *_: score)


def config(out, **changes):
    base = tiny_config.config("dpo", out)
    scorer = Sum((tiny_config.CountNines(), WithPrevious(Probe())), (1.0, 0.0))
    recipe = replace(
        base.recipe, scorer=scorer, schedule=replace(base.recipe.schedule, rounds=3)
    )
    return replace(base, recipe=recipe, **changes)


def test_what_one_round_says_is_what_the_next_one_hears(tmp_path):
    whole = config(tmp_path / "out", mesh=MeshShape(8, 1, 1))
    assert whole.sft is not None
    assert run(replace(whole, sft=replace(whole.sft, batch_size=8))) == 0
    files = sorted((tmp_path / "out" / "records").glob("round_*/rollouts.jsonl"))
    told = [
        {
            (s.components["probe"], s.components["previous"])
            for row in read_records(file, Scored)
            for s in row.scores
        }
        for file in files
    ]
    assert [len(pairs) for pairs in told] == [1, 1, 1]
    now, before = zip(*(pair for pairs in told for pair in pairs), strict=True)
    assert len(set(now)) == 3
    assert before == (now[0], now[0], now[1])


def test_a_run_without_rounds_has_no_round_before(tmp_path):
    online = tiny_config.config("semi_online", tmp_path / "out")
    scorer = WithPrevious(Probe())
    with pytest.raises(ConfigError, match="WithPrevious wants the Rounds schedule"):
        dry_run(replace(online, recipe=replace(online.recipe, scorer=scorer)))


@pytest.mark.full
def test_killed_it_ends_with_the_same_bits(tmp_path):
    points = ["sampled:1", "update:3", "judge:1", "term:1"]
    killed.check(tmp_path, "cream", points)
