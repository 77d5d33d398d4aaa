"""Whether the models that judge can do so: seen before anything is sampled."""

from collections.abc import Iterator
from typing import Any

import jax

from jaxloop.loop.recipe import Evaluation, Recipe
from jaxloop.mesh import divisibility_problems
from jaxloop.models.decoder import ModelShape, cut_sizes
from jaxloop.models.huggingface import read_shape, resolve_model_path
from jaxloop.prompts.dataset import check_vocabulary
from jaxloop.prompts.requests import request_ids
from jaxloop.prompts.tokenizer import Tokenizer, load_tokenizer
from jaxloop.scoring.judge import Judge
from jaxloop.scoring.meta_judge import MetaJudged
from jaxloop.scoring.parts import parts, writers
from jaxloop.scoring.rubric import filled
from jaxloop.scoring.writer import Placed


def decoder_rows(scorer: Any, path: str) -> Iterator[tuple[str, int]]:
    """The setting and the number of rows that each judge on the run's mesh decodes at
    once."""
    for name, part in writers(scorer, path):
        if isinstance(part.by, Placed):
            continue
        yield f"{name}.sampling.rows", part.sampling.rows


def pair_problems(recipe: Recipe) -> list[str]:
    """Pairs of judgements train the policy, so it must have written them, in its own
    tokens."""
    selectors = [part for _, part in parts(recipe.selector)]
    if not any(getattr(part, "of_judgements", False) for part in selectors):
        return []
    return [
        f"{path}.judge.by = {part.judge.by!r}: pairs of judgements train the policy, "
        f"which must have written them: set {path}.judge.by=policy, or select no "
        "judgements"
        for path, part in parts(recipe.scorer, "recipe.scorer")
        if isinstance(part, MetaJudged) and part.judge.by != "policy"
    ]


def first_problems(evaluation: Evaluation) -> list[str]:
    """Where no recipe starts, the "first" model would be the one that is evaluated."""
    return [
        f"{path}.{name} = 'first' is the model that a recipe starts from, and here is "
        "none (`jaxloop eval` trains nothing): it would be the evaluated model itself. "
        f"Name the first model's directory: {path}.{name}=DIR"
        for path, part in parts(evaluation.scorer, "evaluation.scorer")
        for name in ("by", "against")
        if getattr(part, name, None) == "first"
    ]


def judge_problems(
    scorer: Any, path: str, tokenizer: Tokenizer, shape: ModelShape
) -> list[str]:
    """Models that are not there, and judges whose template alone leaves no room for an
    answer. `tokenizer`, `shape`: the policy's."""
    found = []
    for name, part in writers(scorer, path):
        own = (tokenizer, shape)
        if part.by not in ("policy", "first"):
            try:
                own = _other(str(part.by))
                found += _mesh_problems(part, name, own[1])
            except (ValueError, OSError) as error:
                found.append(f"{name}.by: {error}")
                continue
        if isinstance(part, Judge):
            found += _room_problems(part, name, *own)
    return found


def _other(by: str) -> tuple[Tokenizer, ModelShape]:
    path = resolve_model_path(by)
    tokenizer, shape = load_tokenizer(str(path)), read_shape(path)
    check_vocabulary(tokenizer, shape.vocab)
    return tokenizer, shape


def _mesh_problems(part: Any, name: str, shape: ModelShape) -> list[str]:
    """What of a `Placed` model its own mesh cannot cut. ValueError where that mesh is
    none of these devices."""
    if not isinstance(part.by, Placed):
        return []
    mesh = part.by.mesh.resolve(jax.device_count())
    found = [
        f"{name}.by.mesh: {problem}"
        for problem in divisibility_problems(mesh, cut_sizes(shape))
    ]
    rows, parts = part.sampling.rows, mesh.data * mesh.fsdp
    if rows % parts:
        found.append(
            f"{name}.sampling.rows = {rows} cannot be cut into {parts} parts "
            f"({name}.by.mesh)"
        )
    return found


def _room_problems(
    judge: Judge, name: str, tokenizer: Tokenizer, shape: ModelShape
) -> list[str]:
    text = filled(judge.text, dict.fromkeys(judge.template_fields(), ""))
    used, new = len(request_ids(tokenizer, text)), judge.sampling.max_new_tokens
    if used + new < shape.max_positions:
        return []
    return [
        f"{name}: its template has {used} tokens, with {name}.sampling.max_new_tokens "
        f"= {new} no request fits into the {shape.max_positions} positions of its model"
    ]
