"""Whether the data and the models that a config names can serve it."""

from collections.abc import Sequence

from jaxloop.config import ConfigError
from jaxloop.experiment import Config
from jaxloop.loop.judges import judge_problems
from jaxloop.loop.recipe import (
    OfflineStage,
    Online,
    Recipe,
    Rounds,
    Teacher,
    produces,
)
from jaxloop.loop.together import drawn_together
from jaxloop.models.decoder import ModelShape
from jaxloop.models.huggingface import read_shape, resolve_model_path
from jaxloop.prompts.context import with_context
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt
from jaxloop.scoring.scorer import check
from jaxloop.training.batches import Example, example_rows, longest, longest_prompt


def other_shape(path: str, tokens: int) -> ModelShape:
    """The shape of a model that is to read what the policy wrote. ConfigError where it
    cannot, for it has fewer than `tokens` tokens."""
    shape = read_shape(resolve_model_path(path))
    if shape.vocab < tokens:
        raise ConfigError(
            [
                f"{path} embeds {shape.vocab} tokens, the policy's tokenizer has "
                f"{tokens}: they must share it"
            ]
        )
    return shape


def check_data(
    config: Config, data: Dataset, tokenizer: Tokenizer, shape: ModelShape
) -> None:
    """ConfigError or DataError where the data, or the models beside the policy, cannot
    serve the config."""
    problems = _stage_problems(config, data)
    if config.recipe is not None:
        prompt, new = longest_prompt(data.train), config.recipe.max_new_tokens
        name = "recipe.sampling.max_new_tokens"
        problems += _length_problems(prompt, new, shape.max_positions, name)
        limits = tokenizer, new, shape.max_positions
        problems += _contrast_problems("recipe", config.recipe, data.train, *limits)
    if config.offline is not None and not problems:
        kept = fitting(given_examples(config.offline, data), config.offline)
        prompt, answer = longest(row for rows in example_rows(kept) for row in rows)
        name = "the longest completion of the `offline` stage"
        problems += _length_problems(prompt, answer, shape.max_positions, name)
        limits = tokenizer, answer, shape.max_positions
        prompts = [example.prompt for example in kept]
        problems += _contrast_problems("offline", config.offline, prompts, *limits)
    if config.evaluation.scorer is not None:
        if not data.test:
            problems.append("the config evaluates but the data has no test prompts")
        new = config.evaluation.sampling.max_new_tokens
        name, held_out = "evaluation.sampling.max_new_tokens", longest_prompt(data.test)
        problems += _length_problems(held_out, new, shape.max_positions, name)
    for path, scorer in config.scorers():
        problems += judge_problems(scorer, path, tokenizer, shape)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if config.recipe is not None:
        for scorer in config.recipe.scorers():
            check(scorer, data.train)
        if config.recipe.teacher is not None:
            _check_teacher(config.recipe.teacher, data, tokenizer)
    if config.evaluation.scorer is not None:
        check(config.evaluation.scorer, data.test)


def _check_teacher(teacher: Teacher, data: Dataset, tokenizer: Tokenizer) -> None:
    for path in filter(None, teacher.paths):
        other_shape(path, tokenizer.size)
    try:
        for prompt in data.train:
            with_context(prompt, teacher.context, tokenizer)
    except ValueError as error:
        raise ConfigError([f"recipe.teacher.context: {error}"]) from error


def _contrast_problems(
    name: str,
    stage: Recipe | OfflineStage,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    new: int,
    most: int,
) -> list[str]:
    """Whether the two texts fit in front of the prompts."""
    contrast, found = stage.contrast, []
    for text in (contrast.better, contrast.worse) if contrast is not None else ():
        try:
            read = longest_prompt(with_context(p, text, tokenizer) for p in prompts)
        except ValueError as error:
            return [f"{name}.contrast: {error}"]
        found += _length_problems(read, new, most, f"a completion ({name}.contrast)")
    return list(dict.fromkeys(found))


def _length_problems(prompt: int, new: int, most: int, name: str) -> list[str]:
    if prompt + new <= most:
        return []
    return [
        f"a prompt of {prompt} tokens and {name} = {new} exceed the model's {most} "
        "positions"
    ]


def _stage_problems(config: Config, data: Dataset) -> list[str]:
    """What the stages want of the data and do not find."""
    problems = []
    shown = max((len(d.token_ids) for d in data.demonstrations), default=0)
    if config.sft is not None:
        if not data.demonstrations:
            problems.append("the config has an `sft` stage, the data no demonstrations")
        problems += _row_problems("sft.row_tokens", config.sft.row_tokens, shown)
    if config.offline is not None:
        problems += _offline_problems(config.offline, data)
    if config.recipe is None:
        return problems
    schedule = config.recipe.schedule
    if not data.train:
        problems.append("the config has a recipe, the data no training prompts")
    if schedule.prompts > len(data.train) > 0:
        problems.append(
            f"recipe.schedule.prompts = {schedule.prompts}, but the data has "
            f"{len(data.train)} training prompts"
        )
    if isinstance(schedule, Online) and schedule.together and data.train:
        problems += _together_problems(schedule, data)
    if isinstance(schedule, Rounds):
        wanted = schedule.rounds * schedule.prompts
        if schedule.disjoint and wanted > len(data.train):
            problems.append(
                f"{schedule.rounds} disjoint rounds of {schedule.prompts} prompts want "
                f"{wanted}, but the data has {len(data.train)} training prompts"
            )
        made = {produces(r.selector) for r in config.recipe.versions().values()}
        if "demonstrations" in made:
            row = longest_prompt(data.train) + config.recipe.max_new_tokens
            row = max(row, shown if schedule.rehearse else 0)
            name = "recipe.schedule.row_tokens"
            problems += _row_problems(name, schedule.row_tokens, row)
    return problems


def _together_problems(schedule: Online, data: Dataset) -> list[str]:
    name = "recipe.schedule.together"
    try:
        size = len(drawn_together(data.train, schedule.together)[0])
    except ValueError as error:
        return [f"{name}={schedule.together}: {error}"]
    if schedule.prompts % size == 0:
        return []
    return [
        f"recipe.schedule.prompts = {schedule.prompts} parts the {size} prompts that "
        f"{name}={schedule.together} keeps together; take a multiple of {size}"
    ]


def given_examples(stage: OfflineStage, data: Dataset) -> Sequence[Example]:
    """What the data has of the kind that the stage trains on."""
    by_kind = {"pairs": data.pairs, "labelled": data.labelled}
    return by_kind.get(stage.objective.trains_on, [])


def fitting(examples: Sequence[Example], stage: OfflineStage) -> list[Example]:
    """Those none of whose completions is too long for the stage."""
    most = stage.max_completion_tokens
    return [
        example
        for example, rows in zip(examples, example_rows(examples), strict=True)
        if all(len(rollout.token_ids) <= most for _, rollout in rows)
    ]


def _offline_problems(stage: OfflineStage, data: Dataset) -> list[str]:
    most, examples = stage.max_completion_tokens, given_examples(stage, data)
    if not examples:
        kind = stage.objective.trains_on
        return [f"the `offline` stage trains on {kind}, of which the data has none"]
    _, answer = longest(row for rows in example_rows(examples) for row in rows)
    kept = fitting(examples, stage)
    if answer <= most or (stage.on_long == "filter" and kept):
        return []
    return [
        f"a completion has {answer} tokens, more than offline.max_completion_tokens = "
        f"{most}; raise it"
        + (", or set offline.on_long=filter" if kept else " (no example is shorter)")
    ]


def _row_problems(name: str, row: int, longest: int) -> list[str]:
    if longest <= row:
        return []
    return [f"{name} = {row}, but a row must hold {longest} tokens"]
