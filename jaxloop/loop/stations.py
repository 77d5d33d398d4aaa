"""The stations that rounds and online share: evaluate, measure the sampler."""

import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxloop.evaluation.accuracy import evaluation_metrics
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import write_records
from jaxloop.loop.models import bound
from jaxloop.loop.workbench import Workbench, key
from jaxloop.records import Scored
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.training.batches import rows


def evaluate(
    bench: Workbench, params: dict, *, name: str, step: int, phase: str, round=None
) -> dict[str, float]:
    """Held-out accuracy and the like; logs a line and keeps the rollouts.

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
    )(prompts, rollouts)
    metrics = evaluation_metrics(scored, evaluation.measures)
    metrics |= {f"eval/{name}": x for name, x in judge_metrics(scored).items()}
    write_records(bench.folder.evaluation(name), scored)
    timing = {"timing_s/eval": time.perf_counter() - began}
    bench.metrics.write(step, metrics | timing, phase=phase, round=round)
    return metrics


def sampler_gap(bench: Workbench, params: dict, scored: Sequence[Scored], size: int):
    """How far the sampler's log-probabilities are from the trainer's, on `size` rows.

    Both are of the untruncated distribution at the sampling temperature (1 for greedy),
    under the weights that sampled.
    """
    assert bench.config.recipe is not None
    items = [(s.prompt, r) for s in scored for r in s.rollouts][:size]
    if not items:
        return {}
    width = bench.layout.width([rollout for _, rollout in items])
    padded = items + [None] * (size - len(items))
    batch = rows(padded, bench.layout, bench.tokenizer.pad_id, width)
    temperature = bench.config.recipe.sampling.temperature or 1.0
    sampler_logp_BC = batch.pop("sampler_logp_BC")
    with jax.set_mesh(bench.mesh):
        score = bench.token_scorer(bench.layout, temperature=temperature)
        logp_BC = np.asarray(score(params, batch))
    apart = np.abs(logp_BC - sampler_logp_BC)[batch["mask_BC"] > 0]
    name = "sampling/sampling_logp_difference"
    return {f"{name}/mean": float(apart.mean()), f"{name}/max": float(apart.max())}
