"""What a run works with, built once: mesh, model, data, engine, files."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxloop.checkpoint import Checkpointer
from jaxloop.config import ConfigError, to_json
from jaxloop.distributed import fetch, is_first, place, same_everywhere
from jaxloop.experiment import Config
from jaxloop.loop.attempts import Attempt
from jaxloop.loop.checks import check_data, other_shape
from jaxloop.loop.folder import RunFolder
from jaxloop.loop.interrupt import Interrupt
from jaxloop.loop.profile import Profiler, Steps
from jaxloop.mesh import make_mesh, sharding, shardings_of
from jaxloop.metrics import MetricsWriter, Unwritten
from jaxloop.models.decoder import Decoder, ModelShape, init_boxed
from jaxloop.models.huggingface import load_params, read_shape, resolve_model_path
from jaxloop.models.mta import whole_attention
from jaxloop.progress import Progress
from jaxloop.prompts.dataset import Dataset, check_vocabulary
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.sampling.engine import Engine
from jaxloop.scoring.scorer import close
from jaxloop.training.batches import Layout, longest_prompt
from jaxloop.training.step import make_scorer, make_train_step, state_shardings

# What a random stream is for: no two stations ever draw from the same one.
STREAMS = (
    *("init", "prompts", "sampling", "selection", "order", "evaluation", "judging"),
    "writing",
)


def stream_seed(seed: int, stream: str, *indices: int) -> list[int]:
    """Entropy for one use of one station, for example (seed, "order", round, epoch)."""
    return [seed, STREAMS.index(stream), *indices]


def rng(seed: int, stream: str, *indices: int) -> np.random.Generator:
    return np.random.default_rng(stream_seed(seed, stream, *indices))


def key(seed: int, stream: str, *indices: int) -> jax.Array:
    base = jax.random.key(seed)
    for index in stream_seed(seed, stream, *indices)[1:]:
        base = jax.random.fold_in(base, index)
    return base


def locate(config: Config) -> tuple[Path | None, ModelShape]:
    """Where the checkpoint lies (None for a new model) and the model's shape.

    Raises ConfigError with every contradiction of the config at once.
    """
    path = None
    if config.model.path:
        path = resolve_model_path(config.model.path, config.model.revision or None)
        shape = read_shape(path)
    else:
        shape = config.model.shape
    if shape is not None and config.model.outputs:
        shape = dataclasses.replace(shape, outputs=config.model.outputs)
    if shape is not None and config.model.mta is not None:
        shape = dataclasses.replace(shape, mta=config.model.mta)
    problems = config.problems(shape, len(jax.devices()))
    if problems:
        raise ConfigError(problems)
    assert shape is not None
    return path, shape


@dataclass
class Workbench:
    """Everything but the weights, which are values handed from station to station."""

    config: Config
    folder: RunFolder
    model_path: Path | None
    model: Decoder
    mesh: Mesh
    tokenizer: Tokenizer
    data: Dataset
    engine: Engine
    metrics: MetricsWriter | Unwritten
    progress: Progress
    checkpoints: Checkpointer
    interrupt: Interrupt
    attempt: Attempt
    profiler: Profiler
    warned: set[str] = field(default_factory=set)
    kept: dict[str, Any] = field(default_factory=dict)
    """Models beside the policy, and what was compiled for them (`loop/models.py`)."""
    _scorers: dict[tuple[int, float], Callable] = field(default_factory=dict)

    @property
    def vocab(self) -> int | None:
        """Tokens that exist, where the embedding is padded beyond them."""
        size = self.tokenizer.size
        return size if size < self.model.shape.vocab else None

    @cached_property
    def layout(self) -> Layout:
        """Columns for (prompt, completion) rows: one border for the whole run."""
        assert self.config.recipe is not None
        most = self.config.recipe.max_new_tokens
        return Layout.holding(longest_prompt(self.data.train), most)

    def initial_params(self) -> dict:
        """The weights that the run starts from: read, or drawn from the seed."""
        dtype = self.config.model.param_dtype
        if self.model_path is not None:
            return load_params(
                self.model_path,
                self.model.shape,
                self.mesh,
                dtype,
                say=self.progress.line,
            )
        return new_params(self.model, self.mesh, self.config.seed, dtype)

    def other_model(
        self, path: str, *, own_tokenizer: bool = False, mesh: Mesh | None = None
    ) -> tuple[Decoder, dict]:
        """A model beside the policy, in the run's dtypes; loaded once, over `mesh` or
        the run's. Unless it has its `own_tokenizer` it must know the run's tokens."""
        mesh = self.mesh if mesh is None else mesh
        name = f"model {path} {own_tokenizer} {mesh.shape}"
        if name not in self.kept:
            shape = other_shape(path, 0 if own_tokenizer else self.tokenizer.size)
            dtype, where = self.config.model.param_dtype, resolve_model_path(path)
            params = load_params(where, shape, mesh, dtype)
            self.kept[name] = (Decoder(shape, self.model.dtype), params)
        return self.kept[name]

    def train_step(self, objective, optimizer, *, temperature=1.0) -> Callable:
        """`step(state, batch, rate)` for batches of any layout: completions begin where
        their columns do, and each such border is compiled by itself."""

        @cache
        def made(start: int) -> Callable:
            return make_train_step(
                self.model,
                objective,
                optimizer,
                self.mesh,
                start=start,
                temperature=temperature,
                vocab=self.vocab,
            )

        def step(state, batch, rate):
            start = batch["tokens_BT"].shape[-1] - batch["mask_BC"].shape[-1]
            batch = place(batch, sharding(self.mesh, None, "batch"))
            return made(start)(state, batch, rate)

        return step

    def token_scorer(self, layout: Layout, *, temperature: float = 1.0):
        """Compiled `(params, batch) -> logp_BC` for rows in that layout, from the host
        to the host."""
        name = (layout.start, temperature)
        if name not in self._scorers:
            compiled = make_scorer(
                self.model,
                self.mesh,
                start=layout.start,
                temperature=temperature,
                vocab=self.vocab,
            )
            self._scorers[name] = self.on_host(compiled)
        return self._scorers[name]

    def on_host(self, compiled: Callable) -> Callable:
        """`compiled(params, batch)` of a batch on the host, with the result there."""
        cut = sharding(self.mesh, "batch")
        return lambda params, batch: fetch(compiled(params, place(batch, cut)))

    def shardings(self, optimizer, memory=None):
        return state_shardings(self.model, optimizer, self.mesh, memory)

    def close(self) -> None:
        """Ends what runs beside: display, writers, pools of scorers, the account."""
        self.profiler.close()
        self.progress.close()
        self.metrics.close()
        scorers = [self.config.evaluation.scorer]
        if self.config.recipe is not None:
            scorers += self.config.recipe.scorers()
        for scorer in scorers:
            if scorer is not None:
                close(scorer)
        self.checkpoints.close()
        self.attempt.close()


def new_params(model: Decoder, mesh: Mesh, seed: int, dtype) -> dict:
    """Random parameters, created in place on the devices."""
    from flax import linen as nn

    def boxed(key):
        return init_boxed(model, key, dtype)

    init_key = key(seed, "init")
    shardings = shardings_of(jax.eval_shape(boxed, init_key), mesh)
    build = jax.jit(lambda k: nn.unbox(boxed(k)), out_shardings=shardings)
    return build(init_key)


@dataclass(frozen=True)
class Materials:
    """What a run is made of, found and checked; no weights are read yet."""

    model_path: Path | None
    shape: ModelShape
    mesh: Mesh
    tokenizer: Tokenizer
    data: Dataset


def prepare(config: Config) -> Materials:
    """Everything that a user can have got wrong shows here, before a folder is claimed
    or anything is compiled. ConfigError or DataError. Of many processes all call."""
    same_everywhere(
        "the configuration",
        lambda: json.dumps(to_json(config)),
        "give all processes the same config file and environment",
    )
    path, shape = locate(config)
    tokenizer = config.tokenizer.load(str(path or ""))
    check_vocabulary(tokenizer, shape.vocab)
    data = config.data.load(tokenizer)
    same_everywhere(
        "the data",
        data.contents,
        "give all hosts the same files, or a place that all see",
    )
    checked = config
    if config.prompts is not None:  # what the recipe is trained on is not written yet
        config.prompts.maker.check(data.train)
        checked = dataclasses.replace(config, recipe=None)
    check_data(checked, data, tokenizer, shape)
    return Materials(path, shape, make_mesh(config.mesh), tokenizer, data)


def _layout_note(materials: Materials) -> str:
    shape, tensor = materials.shape, materials.mesh.shape["tensor"]
    return whole_attention(shape.mta, shape.heads, tensor)


def build(
    config: Config,
    materials: Materials,
    folder: RunFolder,
    interrupt: Interrupt,
    profiled: Steps | None = None,
) -> Workbench:
    """The workbench of a run in its folder; `profiled` are updates to profile."""
    dtype = jax.numpy.dtype(config.model.dtype)
    model = Decoder(materials.shape, dtype, config.model.remat)
    checkpoints = Checkpointer(
        folder.checkpoints,
        keep=config.checkpoint.keep,
        best_metric=config.checkpoint.best or None,
    )
    attempt = Attempt(folder.path, writes=is_first())
    interrupt.listeners.append(attempt.beat)
    mode = "auto" if is_first() else "off"
    progress = Progress(mode, on_phase=attempt.phase)
    metrics = Unwritten()
    if is_first():
        metrics = MetricsWriter(folder.path, tensorboard=config.tensorboard)
    if note := _layout_note(materials):
        progress.line(note)
    return Workbench(
        config=config,
        folder=folder,
        model_path=materials.model_path,
        model=model,
        mesh=materials.mesh,
        tokenizer=materials.tokenizer,
        data=materials.data,
        engine=Engine(model, materials.tokenizer, materials.mesh),
        metrics=metrics,
        progress=progress,
        checkpoints=checkpoints,
        interrupt=interrupt,
        attempt=attempt,
        profiler=Profiler(folder.path / "profile", profiled),
    )
