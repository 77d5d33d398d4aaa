"""What a judge that does not change has said already of the same request.

Its draws depend on the request and the run's seed alone, so what it said in an earlier
round or evaluation is what it would say again. Only records that a run which is started
again finds too are looked into.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxloop.distributed import told
from jaxloop.loop.folder import RunFolder, shared_records
from jaxloop.loop.recipe import Recipe
from jaxloop.records import Prompt, Rollout, Scored, from_json


def said_in(
    files: Iterable[Path], requests: Sequence[Prompt]
) -> dict[str, tuple[Rollout, ...]]:
    """The answers to these requests in files of scored rollouts, by request id. A
    request is the same when its id (judge, prompt, content) and its tokens are."""
    asked = {request.id: request.token_ids for request in requests}
    return {
        judgement.prompt.id: judgement.rollouts
        for file in files
        for row in shared_records(file, Scored)
        for judgement in row.judgements
        if judgement.rollouts
        and asked.get(judgement.prompt.id) == judgement.prompt.token_ids
    }


def earlier_rounds(folder: RunFolder, recipe: Recipe, index: int) -> list[Path]:
    """The records of the rounds before `index` that had the same scorer."""
    now = recipe.of_round(index).scorer
    return [
        folder.round(i) / "rollouts.jsonl"
        for i in range(index)
        if recipe.of_round(i).scorer == now
    ]


def look_before(folder: RunFolder, step: int) -> list[Path]:
    """The records of the last evaluation before update `step`, of those since the
    recipe began; [] where there is none."""
    began = folder.evaluation("round_000")

    def names() -> list[str]:
        if not began.exists():
            return []
        files = {_step(file): file for file in sorted(began.parent.glob("*.jsonl"))}
        since = [at for at in files if _step(began) <= at < step]
        return [str(files[max(since)])] if since else []

    return [Path(name) for name in told(names)]


def _step(file: Path) -> int:
    """How many updates were in the weights that an evaluation looked at."""
    with file.open(encoding="utf-8") as lines:
        return from_json(Scored, lines.readline()).rollouts[0].version
