"""Prompts that a model writes: asked for, read, screened, answered, filtered.

`jaxloop prompts` does this alone; in a run it comes before the recipe, which is then
trained on what is left. All that models write goes into a journal as it comes, so an
interrupted station goes on behind it and ends with the same file.
"""

import dataclasses
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxloop.config import ConfigError
from jaxloop.distributed import barrier, is_first, told
from jaxloop.exit_codes import DONE, PREEMPTED
from jaxloop.experiment import Config
from jaxloop.loop.checks import check_data
from jaxloop.loop.folder import RunFolder, write_records, write_text
from jaxloop.loop.interrupt import Interrupt, Preempted
from jaxloop.loop.models import LoopModels
from jaxloop.loop.recipe import PromptStage
from jaxloop.loop.workbench import Workbench, build, key, prepare, rng
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.maker import Maker, Request, Written
from jaxloop.prompts.perturbed import Perturbed
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt, Rollout, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.scorer import bind, check, close
from jaxloop.text import TextPool, tokens

FILE = "prompts.jsonl"
COUNTS = "records/prompts/counts.json"


def write_prompts(config: Config, *, argv: Sequence[str] = ()) -> int:
    """The config's `prompts` alone, by the model that it starts from; returns the exit
    code. ConfigError for what a user can mend."""
    stage = config.prompts
    if stage is None:
        raise ConfigError(f"{config.name} has no `prompts`: it names no prompt maker")
    if config.model.shape is not None:
        raise ConfigError(
            "a new, random model has no prompts to write: name the directory of a "
            "trained one in the config file, or let `jaxloop run` train it first"
        )
    config = dataclasses.replace(config, sft=None)
    folder = RunFolder(Path(config.folder))
    notes = told(lambda: folder.check(config))
    if not told((folder.path / FILE).exists):
        materials = prepare(config)
        folder.claim(config, argv)
        with Interrupt() as interrupt:
            bench = build(config, materials, folder, interrupt)
            for note in [*notes, *bench.data.notes]:
                bench.progress.line(note)
            try:
                make_prompts(bench, stage, bench.initial_params(), step=0)
            except Preempted:
                bench.progress.line(
                    f"stopped; the same command goes on from here ({folder.path})"
                )
                return PREEMPTED
            finally:
                bench.close()
    if is_first():
        print(counts_text(_counts(folder)))
        print(folder.path / FILE)
    return DONE


def with_written(
    bench: Workbench, stage: PromptStage, params: dict | None, *, step: int, log: bool
) -> Workbench:
    """The same with prompts that the model `params` writes in the place of the data's;
    those that lie in the folder are read. `log`: whether the metrics, which are cut
    back to a checkpoint on resuming, lack their line."""
    path, timing = bench.folder.path / FILE, {}
    if not told(path.exists):
        assert params is not None, f"{path} is gone, and the weights that wrote it too"
        began = time.perf_counter()
        make_prompts(bench, stage, params, step=step)
        timing = {"timing_s/write": time.perf_counter() - began}
        bench.engine.release()
    if log:
        counts = _counts(bench.folder)
        line = {f"prompts/{name}": float(count) for name, count in counts.items()}
        bench.metrics.write(step, line | timing, phase="prompts")
        bench.progress.line(counts_text(counts))
    train = read_written(bench.config.data, stage.maker, path, bench.tokenizer)
    data = dataclasses.replace(bench.data, train=train)
    check_data(bench.config, data, bench.tokenizer, bench.model.shape)
    return dataclasses.replace(bench, data=data)


def make_prompts(
    bench: Workbench, stage: PromptStage, params: dict, *, step: int
) -> None:
    """Writes `prompts.jsonl`, and beside the journal what each step left of it:
    `written.jsonl`, `scored.jsonl`, and the counts. ConfigError where nothing is."""
    folder = bench.folder.path / "records" / "prompts"
    journal = folder / "texts.jsonl"
    writing = key(bench.config.seed, "writing")
    models = LoopModels(
        bench, params, writing, version=step, journal=journal, task="writing"
    )
    written, counts = collect(bench, stage.maker, models)
    if isinstance(stage.maker, Perturbed) and stage.maker.answering is not None:
        written = _pairs(stage.maker, models, stage.maker.answering, written, counts)
    _refuse_nothing(written, counts, journal)
    rows = {each.id: stage.maker.row(each) for each in written}
    _write_rows(folder / "written.jsonl", rows.values())
    prompts = read_written(
        bench.config.data, stage.maker, folder / "written.jsonl", bench.tokenizer
    )
    counts["dropped/long"] += len(rows) - len(prompts)
    prompts = _scorable(bench.config, stage, prompts, counts)
    models = dataclasses.replace(models, task="answering")
    scored = _scored(stage, models, prompts)
    write_records(folder / "scored.jsonl", scored)
    for each in stage.filters:
        scored, dropped = each(scored)
        counts[f"dropped/{type(each).__name__}"] += dropped
    _refuse_nothing(scored, counts, journal)
    counts["kept"] = len(scored)
    counts = {name: count for name, count in counts.items() if count}
    write_text(bench.folder.path / COUNTS, json.dumps(counts, indent=2) + "\n")
    _write_rows(
        bench.folder.path / FILE, [rows[row.prompt.columns["id"]] for row in scored]
    )


def collect(
    bench: Workbench, maker: Maker, models: LoopModels
) -> tuple[list[Written], Counter]:
    """What can be used of what the maker's requests bring, and how many texts could
    not, by reason. The words of held-out prompts are no use."""
    seeds, counts = bench.data.train, Counter()
    earlier = TextPool([maker.text_of(seed) for seed in seeds])
    held_out = {
        tuple(tokens(str(text)))
        for prompt in bench.data.test
        for text in (prompt.text, prompt.columns.get(maker.column, ""))
    }
    written: list[Written] = []

    def batches() -> Iterator[list[Request]]:
        for batch in itertools.count():
            order = rng(bench.config.seed, "writing", batch)
            if not (requests := maker.requests(seeds, written, batch, order)):
                return
            yield requests

    for requests in batches():
        texts = {request.id: request.text for request in requests}
        told = _ask(models, texts, maker.sampling, maker.by)
        for request, rollouts in zip(requests, told, strict=True):
            if not rollouts:
                counts["dropped/no_room"] += 1
            for rollout in rollouts:
                counts["texts"] += 1
                found = maker.read(request, rollout)
                if isinstance(found, Written):
                    if tuple(tokens(found.text)) in held_out:
                        found = "held_out"
                    elif len(written) == maker.count:
                        found = "surplus"
                    else:
                        found = maker.screen.problem(found.text, earlier) or found
                if isinstance(found, str):
                    counts[f"dropped/{found}"] += 1
                else:
                    earlier.add(found.text)
                    written.append(found)
    return written, counts


def _ask(
    models: LoopModels, texts: Mapping[str, str], sampling: Sampling, by: str
) -> list[tuple[Rollout, ...]]:
    """What the model answers to the texts, by id; () to one that is too long for it."""
    return models.write(models.prompts(texts, by=by), sampling, by=by)


def _pairs(
    maker: Perturbed,
    models: LoopModels,
    sampling: Sampling,
    written: Sequence[Written],
    counts: Counter,
) -> list[Written]:
    """With the answers to what was asked and to what was made of it."""
    texts = {}
    for each in written:
        texts[f"answer:{each.id}:chosen"] = each.shown[0][1]
        texts[f"answer:{each.id}:rejected"] = each.text
    models = dataclasses.replace(models, task="answering")
    groups = _ask(models, texts, sampling, maker.by)
    told = [group[0].text if group else "" for group in groups]
    made = []
    for each, chosen, rejected in zip(written, told[::2], told[1::2], strict=True):
        found = maker.pair(each, (chosen, rejected))
        if isinstance(found, str):
            counts[f"dropped/{found}"] += 1
        else:
            made.append(found)
    return made


def read_written(
    data: object, maker: Maker, path: Path, tokenizer: Tokenizer
) -> list[Prompt]:
    """The prompts of a file that a maker wrote: by the data's own settings where they
    read files, as text where a world makes its prompts itself. Those longer than
    `max_prompt_tokens` are left out."""
    source = data if isinstance(data, JsonlData) else JsonlData()
    own = {} if maker.column else {"template": "", "prompt_field": "prompt"}
    nothing = dict.fromkeys(("test", "demonstrations", "pairs", "labelled"), "")
    source = dataclasses.replace(
        source,
        train=str(path),
        answer_field="",
        on_long="filter",
        **own,
        **nothing,
    )
    return source.load(tokenizer).train


def _scorable(
    config: Config, stage: PromptStage, prompts: Sequence[Prompt], counts: Counter
) -> list[Prompt]:
    """Those with which the stage's scorer and the recipe's can do anything: a model
    writes answers that are no numbers, too."""
    scorers = [stage.scorer] if stage.scorer is not None else []
    scorers += [config.recipe.scorer] if config.recipe is not None else []

    def readable(prompt: Prompt) -> bool:
        try:
            for scorer in scorers:
                check(scorer, [prompt])
        except ValueError:
            counts["dropped/unscorable"] += 1
            return False
        return True

    return [prompt for prompt in prompts if readable(prompt)]


def _scored(
    stage: PromptStage, models: LoopModels, prompts: Sequence[Prompt]
) -> list[Scored]:
    """The prompts with the policy's answers and what they are worth, where the stage
    says how."""
    if stage.scorer is None or stage.sampling is None:
        return [Scored(prompt, (), ()) for prompt in prompts]
    rollouts = models.write(prompts, stage.sampling)
    try:
        return bind(stage.scorer, models)(prompts, rollouts)
    finally:
        close(stage.scorer)


def _refuse_nothing(left: Sequence, counts: Counter, journal: Path) -> None:
    if left:
        return
    raise ConfigError(
        f"no prompt is left ({counts_text(counts)}); what the model wrote lies in "
        f"{journal}: see whether it follows prompts.maker.template, and what the "
        "maker's screen and prompts.filters want. Try again in another folder "
        "(out=DIR)"
    )


def counts_text(counts: Mapping[str, int]) -> str:
    """`prompts: 600 texts, 230 kept; dropped: 182 AnswerConsistency, 12 alike`."""
    dropped = {
        name.removeprefix("dropped/"): count
        for name, count in counts.items()
        if name.startswith("dropped/") and count
    }
    most_first = sorted(dropped.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {reason}" for reason, count in most_first)
    kept = f"{counts.get('texts', 0)} texts, {counts.get('kept', 0)} kept"
    return f"prompts: {kept}; dropped: {shown or 'none'}"


def _counts(folder: RunFolder) -> dict[str, int]:
    return json.loads((folder.path / COUNTS).read_text())


def _write_rows(path: Path, rows) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))
    barrier()  # it is read next, by all
