"""A judge over rows of data: its judgements, and how far they are right.

Rows have their answers (`CandidateData`), or the config's model writes
`evaluation.sampling.n` of them. What was judged is appended part by part; started
again, it goes on behind that, with the same bits.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxloop.config import ConfigError
from jaxloop.distributed import is_first, told
from jaxloop.evaluation.intervals import wilson_interval
from jaxloop.exit_codes import DONE, PREEMPTED
from jaxloop.experiment import Config
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import RunFolder, append_records, whole_records
from jaxloop.loop.interrupt import Interrupt, Preempted
from jaxloop.loop.models import bound
from jaxloop.loop.workbench import Workbench, build, key, prepare
from jaxloop.prompts.candidates import BETTER, CANDIDATES, candidates
from jaxloop.records import Prompt, Rollout, Scored
from jaxloop.scoring.canaries import answer_judges
from jaxloop.scoring.judge import Judge
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.metrics import judge_warnings

FILE = "judgements.jsonl"


def judge(config: Config, *, argv: Sequence[str] = ()) -> tuple[int, str]:
    """(exit code, what came of it in words). ConfigError, before anything is compiled,
    for whatever a user can mend."""
    judges = answer_judges(config.evaluation.scorer) if config.evaluation.scorer else []
    if not judges:
        raise ConfigError("evaluation.scorer has no Judge in it: nobody to judge")
    config = dataclasses.replace(config, sft=None, offline=None, recipe=None)
    folder = RunFolder(Path(config.folder))
    notes = told(lambda: folder.check(config))
    materials = prepare(config)
    _check_counts(config, judges, materials.data.test)
    folder.claim(config, argv)
    with Interrupt() as interrupt:
        bench = build(config, materials, folder, interrupt)
        for note in [*notes, *bench.data.notes]:
            bench.progress.line(note)
        try:
            scored = judge_rows(bench, judges)
            metrics = judge_metrics(scored) | label_metrics(scored)
            bench.metrics.truncate_to(0)
            bench.metrics.write(len(scored), metrics, phase="judge")
        except Preempted:
            bench.progress.line("stopped; the same command goes on from here")
            return PREEMPTED, ""
        finally:
            bench.close()
    if not is_first():
        return DONE, ""
    return DONE, summary_text(metrics, len(scored), folder.path / FILE)


def _check_counts(
    config: Config, judges: Sequence[Judge], prompts: Sequence[Prompt]
) -> None:
    least = max(len(places) for each in judges for places in each.show(2))
    if config.evaluation.sampling.n < least and not all(
        BETTER in prompt.columns for prompt in prompts
    ):
        raise ConfigError(
            f"evaluation.sampling.n = {config.evaluation.sampling.n}: the judge looks "
            "at two answers together, and there are rows without answers; set it to 2"
        )


def judge_rows(bench: Workbench, judges: Sequence[Judge]) -> list[Scored]:
    """Every row judged, those of an earlier start read from the file."""
    evaluation, path = bench.config.evaluation, bench.folder.path / FILE
    assert evaluation.scorer is not None
    prompts = bench.data.test[: evaluation.prompts or None]
    done = whole_records(path, Scored)
    if len(done) >= len(prompts):
        return done
    params = bench.initial_params()
    scorer = bound(
        bench,
        evaluation.scorer,
        params,
        key(bench.config.seed, "judging", 2),
        version=0,
    )
    # Enough rows a part to keep the decoder full, few enough to lose little.
    requests = max(len(each.show(2)) * each.sampling.n for each in judges)
    size = max(4 * judges[0].sampling.rows // requests, 1)
    bench.progress.phase("judging", total=len(prompts), unit="rows", done=len(done))
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        if len(done) >= first + len(part):
            continue  # judged before the command was interrupted
        judged = scorer([*map(_bare, part)], _answers(bench, params, part))
        new = judged[len(done) - first :]
        append_records(path, new)
        done += new
        bench.progress.update(len(done))
        bench.interrupt.check()
    return done


def _bare(prompt: Prompt) -> Prompt:
    """Without its answers, which are in the records as rollouts."""
    columns = {k: v for k, v in prompt.columns.items() if k != CANDIDATES}
    return dataclasses.replace(prompt, columns=columns)


def _answers(
    bench: Workbench, params: dict, prompts: Sequence[Prompt]
) -> list[tuple[Rollout, ...]]:
    """The rows' own answers; where there are none, the model's."""
    given = [candidates(prompt, bench.tokenizer) for prompt in prompts]
    wanting = [p for p, group in zip(prompts, given, strict=True) if not group]
    if not wanting:
        return given
    evaluation_key = key(bench.config.seed, "evaluation")
    sampling = bench.config.evaluation.sampling
    drawn = sample(bench, params, wanting, sampling, evaluation_key, 0, show=False)
    written = iter(drawn)
    return [group or next(written) for group in given]


def label_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Of the rows with a label, against the scores: `label/accuracy`, the share of
    those compared in which the better answer has the highest score (a tie counts half),
    `label/low` and `label/high` of its 95 % interval, `label/compared` (how many),
    `label/tied_frac`; and `label/unjudged_frac`, rows left out for want of a valid
    judgement of each answer."""
    labelled = [row for row in scored if BETTER in row.prompt.columns]
    if not labelled:
        return {}
    found = [_outcome(row) for row in labelled]
    known = [outcome for outcome in found if outcome is not None]
    metrics = {"label/compared": float(len(known))}
    metrics["label/unjudged_frac"] = 1 - len(known) / len(found)
    if known:
        low, high = wilson_interval(sum(known), len(known))
        metrics["label/accuracy"] = sum(known) / len(known)
        metrics |= {"label/low": low, "label/high": high}
        metrics["label/tied_frac"] = known.count(0.5) / len(known)
    return metrics


def _outcome(row: Scored) -> float | None:
    """1 where the better answer has the highest score, 1/2 where others share it."""
    values = [score.value for score in row.scores]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    mine = known.pop(row.prompt.columns[BETTER])
    rival = max(known)
    return 0.5 if mine == rival else float(mine > rival)


SHOWN = {
    "invalid_frac": "judgements that cannot be read",
    "too_long_frac": "requests too long for it",
    "swap_agreement": "both orders agree",
    "first_bias": "first place favoured (-1 to 1)",
    "tied_frac": "rows with equal scores",
    "length_corr": "correlation with length",
}


def summary_text(metrics: Mapping[str, float], rows: int, path: Path) -> str:
    """What a person wants to know first."""
    lines = [f"{rows} rows judged"]
    if "label/accuracy" in metrics:
        names = ("accuracy", "low", "high", "tied_frac")
        share, low, high, tied = (100 * metrics[f"label/{name}"] for name in names)
        lines.append(
            f"  accuracy against the labels: {share:.1f} % (95 % interval {low:.1f} to "
            f"{high:.1f} %), {metrics['label/compared']:.0f} rows, {tied:.1f} % tied, "
            "which count half"
        )
    if left_out := metrics.get("label/unjudged_frac"):
        lines.append(
            f"  {100 * left_out:.1f} % of the rows with labels have no valid judgement "
            "and are left out"
        )
    judges = [
        judge
        for judge, _, metric in (name.rpartition("/") for name in metrics)
        if metric == "invalid_frac"
    ]
    lines += [
        f"  {judge}: {words:<32}{metrics[f'{judge}/{metric}']:6.3f}"
        for judge in judges
        for metric, words in SHOWN.items()
        if f"{judge}/{metric}" in metrics
    ]
    lines += [f"  {warning}" for warning in judge_warnings(metrics)]
    return "\n".join([*lines, f"judgements: {path}"])
