"""A model outside of a run: answers to a prompt, a checkpoint in Hugging Face form."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax

from jaxloop.checkpoint import Checkpointer, find_step
from jaxloop.config import ConfigError
from jaxloop.loop.folder import write_text
from jaxloop.mesh import batch_parts, make_mesh
from jaxloop.models.decoder import Decoder, ModelShape, RopeScaling
from jaxloop.models.export import save_model
from jaxloop.models.huggingface import load_params, read_shape, resolve_model_path
from jaxloop.models.mta import MtaShape
from jaxloop.models.parameters import abstract_params
from jaxloop.prompts.tokenizer import Tokenizer, load_tokenizer
from jaxloop.records import Prompt
from jaxloop.sampling.engine import Engine
from jaxloop.sampling.settings import Sampling

SHAPE, TOKENIZER = "model/shape.json", "model/tokenizer"


def describe_model(out: Path, shape: ModelShape, tokenizer: Tokenizer) -> None:
    """Puts into a run's folder what its checkpoints lack: shape and tokenizer."""
    tokenizer.save(out / TOKENIZER)
    write_text(out / SHAPE, json.dumps(asdict(shape), indent=2) + "\n")


def load_checkpoint(path: Path) -> tuple[ModelShape, dict, Tokenizer]:
    """The model of `OUT/checkpoints/latest` (or `best`, or a step, or OUT itself)."""
    directory, step = find_step(path)
    out = directory.parent
    if not (out / SHAPE).exists():
        raise ConfigError(f"{out} has no {SHAPE}: it is not the folder of a run")
    values = json.loads((out / SHAPE).read_text())
    scaling = values.pop("rope_scaling")
    scaling = RopeScaling(**scaling) if scaling else None
    # Runs from before there was Multi-Token Attention do not name it.
    mta = values.pop("mta", None)
    mta = MtaShape(**mta) if mta else None
    shape = ModelShape(**values, rope_scaling=scaling, mta=mta)
    reader = Checkpointer(directory, read_only=True)
    leaves = reader.leaves(step)
    inside = "state/params" if "state/params/embed_VD" in leaves else "params"
    dtype = leaves[f"{inside}/embed_VD"][1]
    tree = {"params": abstract_params(shape, make_mesh(), dtype)}
    if inside == "state/params":
        tree = {"state": tree}
    restored, _ = reader.restore(step, tree, partial=True)
    params = restored.get("state", restored)["params"]
    return shape, params, load_tokenizer(str(out / TOKENIZER))


def load_model(path: str) -> tuple[ModelShape, dict, Tokenizer]:
    """A Hugging Face directory or hub id, or a checkpoint of a run."""
    local = Path(path)
    if (local.is_dir() and not (local / "config.json").exists()) or (
        local.name in ("latest", "best") or (local / SHAPE).exists()
    ):
        return load_checkpoint(local)
    found = resolve_model_path(path)
    shape = read_shape(found)
    params = load_params(found, shape, make_mesh())
    return shape, params, load_tokenizer(str(found))


def sample_text(
    path: str, prompt: str, sampling: Sampling, seed: int, chat: bool
) -> Iterator[str]:
    """`sampling.n` answers to `prompt`, as text."""
    shape, params, tokenizer = load_model(path)
    if chat:
        message = {"role": "user", "content": prompt}
        ids = tokenizer.chat_ids([message], add_generation_prompt=True)
    else:
        ids = tokenizer.bos_ids + tokenizer.encode(prompt)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        engine = Engine(Decoder(shape), tokenizer, mesh)
        parts = batch_parts(mesh)
        rows = -(-min(sampling.rows, sampling.n) // parts) * parts
        sampled = engine.sample(
            params,
            [Prompt("prompt", prompt, ids)],
            replace(sampling, rows=rows, prefill_rows=1),
            key=jax.random.key(seed),
        )
    for rollout in sampled[0]:
        yield rollout.text


def convert_checkpoint(source: Path, target: Path) -> Path:
    """Writes the checkpoint's model as a Hugging Face directory; returns `target`."""
    shape, params, tokenizer = load_checkpoint(source)
    save_model(target, shape, params, tokenizer)
    return target
