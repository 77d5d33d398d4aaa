"""What a run would take, from shapes alone: nothing is allocated or compiled."""

import jax
import numpy as np

from jaxloop.config.values import json_like
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Online, produces
from jaxloop.loop.round_training import rows_each
from jaxloop.loop.workbench import prepare
from jaxloop.mesh import batch_parts
from jaxloop.models.decoder import Decoder, count_parameters
from jaxloop.models.huggingface import read_shape, resolve_model_path
from jaxloop.models.parameters import abstract_params, bytes_per_device
from jaxloop.sampling.engine import cache_bytes
from jaxloop.training.batches import longest_prompt
from jaxloop.training.step import abstract_state


def dry_run(config: Config) -> str:
    """Resolves and checks `config`; the table of what each device would hold.

    ConfigError with every contradiction. Reads the model's config.json, the tokenizer
    and the data, no weights.
    """
    materials = prepare(config)
    shape, data, mesh = materials.shape, materials.data, materials.mesh
    prompt = longest_prompt([*data.train, *data.test])
    model = Decoder(shape, jax.numpy.dtype(config.model.dtype), config.model.remat)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines = [
        f"{config.name}: {shape.family}, {count_parameters(shape):,} parameters",
        f"mesh {sizes} over {mesh.size} x {mesh.devices.flat[0].device_kind}",
        f"folder {config.folder}",
        "",
        f"{'bytes for each device':<38}{'MiB':>10}",
    ]
    dtype = config.model.param_dtype
    params = bytes_per_device(abstract_params(shape, mesh, dtype))
    rows = [("parameters", params)]
    for name, optimizer in config.optimizers():
        state = abstract_state(model, optimizer, mesh, dtype)
        rows.append((f"optimiser state ({name})", bytes_per_device(state.opt_state)))
    if len(rows) > 1:
        rows.append(("gradients (float32 where accumulated)", params))
    rows += _sampling_rows(config, shape, mesh, prompt, params)
    rows += _recipe_rows(config, shape, mesh, params)
    for name, size in dict(rows).items():
        lines.append(f"{name:<38}{size / 2**20:>10.2f}")
    lines.append("")
    lines += [f"{name:<38}{size}" for name, size in _shapes(config, prompt)]
    return "\n".join(lines)


def _sampling_rows(
    config: Config, shape, mesh, prompt: int, params: int
) -> list[tuple[str, int]]:
    """Of answers to the data's prompts: how long requests to judges and to writers of
    prompts are depends on what they quote, which nobody knows yet."""
    versions = config.recipe.versions().values() if config.recipe else ()
    drawn = [each for r in versions for each in (r.sampling, r.extra) if each]
    if config.evaluation.scorer is not None:
        drawn.append(config.evaluation.sampling)
    if not drawn:
        return []
    stored = np.dtype(config.model.param_dtype).itemsize
    itemsize = np.dtype(config.model.dtype).itemsize
    parts = batch_parts(mesh) * mesh.shape["tensor"]
    caches = [cache_bytes(shape, s, prompt, config.model.dtype, parts) for s in drawn]
    return [
        ("key-value cache while sampling", max(caches)),
        ("sampler's copy of the weights", params // stored * itemsize),
    ]


def _recipe_rows(config: Config, shape, mesh, params: int) -> list[tuple[str, int]]:
    recipe = config.recipe
    if recipe is None:
        return []
    rows, schedule = [], recipe.schedule
    if isinstance(schedule, Online) and schedule.sync_every != 1:
        rows.append(("stale sampler (sync_every)", params))
    if isinstance(schedule, Online) and "reference" in recipe.objective.needs:
        rows.append(("reference", params))
    for path in recipe.teacher.paths if recipe.teacher else ():
        own = read_shape(resolve_model_path(path)) if path else shape
        held = abstract_params(own, mesh, config.model.param_dtype)
        rows.append(
            (f"teacher {path or '(the first weights)'}", bytes_per_device(held))
        )
    return rows


def _shapes(config: Config, prompt: int):
    """The arrays of an update, in words."""
    if config.sft is not None:
        stage = config.sft
        size = stage.batch_size // stage.accumulation
        yield "supervised batch", f"{stage.accumulation} x ({size}, {stage.row_tokens})"
    if config.evaluation.scorer is not None:
        held_out = config.evaluation.sampling
        yield (
            "decoder rows, held-out",
            f"{held_out.rows}, {held_out.n} samples a prompt",
        )
    recipe = config.recipe
    if recipe is None:
        return
    new, schedule = recipe.max_new_tokens, recipe.schedule
    columns = f"{prompt} + {new}"
    if isinstance(schedule, Online):
        rows = schedule.prompts * recipe.sampling.n
        if recipe.objective.trains_on == "pairs":
            rows = schedule.prompts * getattr(recipe.selector, "pairs", 1)
        if recipe.objective.trains_on != "groups":
            rows *= rows_each(recipe.objective)
    else:
        rows = schedule.batch_size * rows_each(recipe.objective)
        if produces(recipe.selector) == "demonstrations":
            columns = str(schedule.row_tokens)
    rows //= schedule.accumulation
    yield "update batch", f"{schedule.accumulation} x ({rows}, {columns})"
    yield (
        "decoder rows",
        f"{recipe.sampling.rows}, {recipe.sampling.n} samples a prompt"
        + (f" and {recipe.extra.n} extra" if recipe.extra else ""),
    )
    for change in recipe.changes:
        value = json_like(change.value)
        yield f"from round {change.round} on", f"{change.field} = {value}"
