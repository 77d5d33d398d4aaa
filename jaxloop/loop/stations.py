"""The stations that rounds and online share: evaluate, measure the sampler."""

import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxloop.evaluation.accuracy import evaluation_metrics
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import write_records
from jaxloop.loop.models import LoopModels, bound
from jaxloop.loop.said_before import look_before
from jaxloop.loop.workbench import Workbench, key
from jaxloop.records import Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.canaries import canary_warnings, judge_canaries
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.metrics import judge_warnings
from jaxloop.scoring.scorer import Scorer
from jaxloop.training.batches import rows


def evaluate(
    bench: Workbench,
    params: dict,
    *,
    name: str,
    step: int,
    phase: str,
    round: int | None = None,
    running: int = 0,
    first: dict | None = None,
) -> dict[str, float]:
    """Held-out accuracy and the like; logs a line and keeps the rollouts.

    `round`: how many rounds are done, where it is the look after them. `running`: the
    round (from 0) that runs or has just ended; its judges are shown the canaries.
    `first`: what stands for the recipe's first model, where that is still to come.
    Without a scorer or test prompts there is nothing to measure: an empty dict.
    """
    evaluation = bench.config.evaluation
    prompts = bench.data.test[: evaluation.prompts or None]
    if evaluation.scorer is None or not prompts:
        return {}
    began = time.perf_counter()
    total = len(prompts) * evaluation.sampling.n
    bench.progress.phase("evaluating", total=total)
    # The same key each time: the same questions get the same luck.
    evaluation_key = key(bench.config.seed, "evaluation")
    rollouts = sample(
        bench, params, prompts, evaluation.sampling, evaluation_key, version=step
    )
    scored = bound(
        bench,
        evaluation.scorer,
        params,
        key(bench.config.seed, "judging", 2),
        version=step,
        earlier=look_before(bench.folder, step),
        first=first,
    )(prompts, rollouts)
    metrics = evaluation_metrics(scored, evaluation.measures, evaluation.summaries)
    of_judges = judge_metrics(scored)
    for warning in judge_warnings(of_judges):
        bench.progress.line(f"held out: {warning}")
    metrics |= {f"eval/{name}": x for name, x in of_judges.items()}
    if bench.config.recipe is not None and first is None:
        scorer = bench.config.recipe.of_round(running).scorer
        models = LoopModels(bench, params, key(bench.config.seed, "judging", 3), step)
        metrics |= _canaries(models, scorer, prompts, rollouts, name)
    write_records(bench.folder.evaluation(name), scored)
    timing = {"timing_s/eval": time.perf_counter() - began}
    bench.metrics.write(step, metrics | timing, phase=phase, round=round)
    return metrics


def _canaries(
    models: LoopModels, scorer: Scorer, prompts, rollouts, name: str
) -> dict[str, float]:
    """How the scorer's judges take answers that are none; {} without a judge."""
    metrics, scored = judge_canaries(scorer, models, prompts, rollouts)
    if scored:
        write_records(models.bench.folder.canaries(name), scored)
    for warning in canary_warnings(metrics):
        models.bench.progress.line(warning)
    return metrics


def sampler_gap(
    bench: Workbench,
    params: dict,
    scored: Sequence[Scored],
    size: int,
    sampling: Sampling,
) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's, on `size` rows.

    Both are of the untruncated distribution at the temperature of `sampling` (1 for
    greedy), under the weights that sampled.
    """
    items = [(s.prompt, r) for s in scored for r in s.rollouts][:size]
    if not items:
        return {}
    width = bench.layout.width([rollout for _, rollout in items])
    padded = items + [None] * (size - len(items))
    batch = rows(padded, bench.layout, bench.tokenizer.pad_id, width)
    temperature = sampling.temperature or 1.0
    sampler_logp_BC = batch.pop("sampler_logp_BC")
    with jax.set_mesh(bench.mesh):
        score = bench.token_scorer(bench.layout, temperature=temperature)
        logp_BC = score(params, batch)
    apart = np.abs(logp_BC - sampler_logp_BC)[batch["mask_BC"] > 0]
    name = "sampling/sampling_logp_difference"
    return {f"{name}/mean": float(apart.mean()), f"{name}/max": float(apart.max())}
