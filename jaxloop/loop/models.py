"""What scorers may ask of models: the policy, the model that the recipe started from,
others from directories. The scorers know nothing of meshes; they get this passed in."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxloop.config import ConfigError
from jaxloop.distributed import many, told
from jaxloop.loop import store
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import append_records, whole_records
from jaxloop.loop.reference import rollout_logps
from jaxloop.loop.said_before import said_in
from jaxloop.loop.workbench import Workbench, key
from jaxloop.mesh import make_mesh
from jaxloop.models.decoder import Decoder
from jaxloop.models.huggingface import resolve_model_path
from jaxloop.prompts.requests import request_ids, reserved
from jaxloop.prompts.tokenizer import load_tokenizer
from jaxloop.records import Prompt, Rollout, Scored, from_json, to_json
from jaxloop.sampling.engine import Engine, common_head
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.endpoint import SPECIAL, Endpoint
from jaxloop.scoring.scorer import Scorer, bind
from jaxloop.scoring.writer import By, Placed
from jaxloop.training.batches import Layout, Row, longest, rows, tokens_of
from jaxloop.training.step import make_head_scorer


def bound(
    bench: Workbench,
    scorer: Scorer,
    params: dict,
    judging_key: jax.Array,
    *,
    version: int,
    journal: Path | None = None,
    earlier: Sequence[Path] = (),
    first: dict | None = None,
) -> Scorer:
    """The scorer with the models it asks for: `LoopModels`."""
    models = LoopModels(
        bench,
        params,
        judging_key,
        version,
        journal,
        fixed_key=key(bench.config.seed, "judging", 4),
        earlier=earlier,
        first=first,
    )
    return bind(scorer, models)


@dataclass(frozen=True)
class LoopModels:
    """The models of a run. Those beside the policy are loaded once and stay on the
    devices.

    `params` are the policy's, `version` the updates in them. What models write is kept
    in `journal`, where there is one, as it comes; after an interruption it is read from
    there.
    """

    bench: Workbench
    params: dict
    key: jax.Array
    version: int
    journal: Path | None = None
    task: str = "judging"
    """What progress calls it when they write."""
    fixed_key: jax.Array | None = None
    """With which models that do not change write: the same answers to the same request
    whenever it comes. None: with `key`, as the policy does."""
    earlier: Sequence[Path] = ()
    """Records in which such models may have answered already."""
    first: dict | None = None
    """What stands for the first model before the recipe starts; None from then on."""

    def prompts(self, texts: Mapping[str, str], *, by: By = "policy") -> list[Prompt]:
        """A prompt for each id and text: as a user's message where the tokenizer has a
        chat template, else as it is."""
        if isinstance(by, Endpoint):
            return by.prompts(texts)
        tokenizer = self._writer(by)[0].tokenizer
        return [
            Prompt(id, text, request_ids(tokenizer, text)) for id, text in texts.items()
        ]

    def special_tokens(self, *, by: By = "policy") -> Collection[str]:
        """The special and other added tokens of that model's tokenizer, as text."""
        if isinstance(by, Endpoint):
            return SPECIAL
        return reserved(self._writer(by)[0].tokenizer)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Of a text as the policy writes it, nothing added."""
        return self.bench.tokenizer.encode(text)

    def write(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, by: By = "policy"
    ) -> list[tuple[Rollout, ...]]:
        """`sampling.n` rollouts of each prompt, by the "policy", the "first" model,
        that of a directory or an endpoint; () where the prompt is too long for it."""
        fitting = self.fitting(prompts, sampling, by=by)
        shared = common_head(fitting)  # of all: what waits depends on interruptions
        written: dict[str, tuple[Rollout, ...]] = {}
        if self.journal is not None:
            kept = whole_records(self.journal, Scored)
            written = {row.prompt.id: row.rollouts for row in kept}
        if self.earlier and _unchanging(by):
            written |= said_in(self.earlier, fitting)
        waiting = [prompt for prompt in fitting if prompt.id not in written]
        size = max(8 * sampling.rows // sampling.n, 1)
        total = len(waiting) * sampling.n
        if self.journal is not None:
            self.bench.progress.phase(self.task, total=total)
        for place in range(0, len(waiting), size):
            part = waiting[place : place + size]
            rollouts = self._answers(part, sampling, by, shared, place * sampling.n)
            written |= {p.id: r for p, r in zip(part, rollouts, strict=True)}
            if self.journal is not None:
                rows = [Scored(p, written[p.id], ()) for p in part]
                append_records(self.journal, rows)
        return [written.get(prompt.id, ()) for prompt in prompts]

    def fitting(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, by: By = "policy"
    ) -> list[Prompt]:
        """Those that leave room for an answer; says once how many do not."""
        if isinstance(by, Endpoint):  # the server knows its own limits
            return list(prompts)
        room = self._writer(by)[0].room(sampling)
        fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
        said = f"too long for {by}"
        if len(fitting) < len(prompts) and said not in self.bench.warned:
            self.bench.warned.add(said)
            self.bench.progress.line(
                f"{len(prompts) - len(fitting)} of {len(prompts)} requests to {by} are "
                f"longer than the {room} tokens that leave room for {self.task}, and "
                "get no answer (metric too_long_frac): shorten what is shown, or lower "
                "the judge's sampling.max_new_tokens"
            )
        return fitting

    def _answers(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        by: By,
        shared: int,
        done: int,
    ) -> list[tuple[Rollout, ...]]:
        """To a part of the prompts, which begin with `shared` equal tokens; `done`
        rollouts came before these."""
        bench, show = self.bench, self.journal is not None
        if not isinstance(by, Endpoint):
            engine, params = self._writer(by)
            fixed = self.fixed_key if _unchanging(by) else None
            return sample(
                bench,
                params,
                prompts,
                sampling,
                self.key if fixed is None else fixed,
                0 if _unchanging(by) else self.version,
                done=done,
                show=show,
                engine=engine,
                shared=shared,
            )

        def on_progress(finished: int) -> None:
            if many():  # the others do not come to this safe point
                bench.interrupt.beat()
            else:
                bench.interrupt.check()
            if show:
                bench.progress.update(done + finished)

        def answers() -> list[list[str]]:
            groups = by.write(
                prompts,
                sampling,
                kept=bench.folder.path / "endpoint",
                on_progress=on_progress,
                say=bench.progress.line,
            )
            return [[to_json(rollout) for rollout in group] for group in groups]

        groups = told(answers)  # requests cost money, and answers differ
        bench.interrupt.check()
        return [tuple(from_json(Rollout, line) for line in group) for group in groups]

    def _writer(self, by: str | Placed) -> tuple[Engine, dict]:
        """Who writes: an engine and its parameters."""
        if by == "policy":
            return self.bench.engine, self.params
        if by == "first":
            return self.bench.engine, self._first()
        kept, name, path = self.bench.kept, f"engine {by!r}", str(by)
        if name not in kept:
            mesh = make_mesh(by.mesh) if isinstance(by, Placed) else self.bench.mesh
            model, params = self.bench.other_model(path, own_tokenizer=True, mesh=mesh)
            tokenizer = load_tokenizer(str(resolve_model_path(path)))
            kept[name] = Engine(model, tokenizer, mesh), params
        return kept[name]

    def _first(self) -> dict:
        """The weights that the recipe started from; before it, those of the moment."""
        if self.first is not None:
            return self.first
        kept = self.bench.kept
        if "first" not in kept:
            kept["first"] = store.load_seed(self.bench)
        return kept["first"]

    @property
    def previous(self) -> "LoopModels":
        """With the previous round's policy in the policy's place, where `rounds.py` has
        put it among what is kept; in a first round, with the policy itself."""
        return replace(self, params=self.bench.kept.get("previous", self.params))

    def logps(self, items: Sequence[Row], *, by: str = "policy") -> np.ndarray:
        """(N,) float64: log-probability of each completion at temperature 1, summed,
        under the "policy", the "first" model or that of a directory."""
        layout, size = self._layout(items), self._size(items)
        params = self._params(by)
        logp_NC = rollout_logps(self.bench, params, items, size, layout=layout)
        return logp_NC.astype(np.float64).sum(axis=1)

    def _params(self, by: str) -> dict:
        """Of a model in the policy's shape."""
        if by in ("policy", "first"):
            return self.params if by == "policy" else self._first()
        model, params = self.bench.other_model(by)
        if model.shape != self.bench.model.shape:
            raise ConfigError([f"{by} is a model of another shape than the policy"])
        return params

    def outputs(self, items: Sequence[Row], *, path: str = "") -> np.ndarray:
        """(N, K) float32: the scalar head after the last token of each completion."""
        layout, size = self._layout(items), self._size(items)
        model, params = self._headed(path)
        name = f"head of {path or 'the policy'} from {layout.start}"
        kept = self.bench.kept
        if name not in kept:
            mesh = self.bench.mesh
            compiled = make_head_scorer(model, mesh, start=layout.start)
            kept[name] = self.bench.on_host(compiled)
        found = []
        with jax.set_mesh(self.bench.mesh):
            for place in range(0, len(items), size):
                self.bench.interrupt.check()
                part = list(items[place : place + size])
                padded = [*part, *[None] * (size - len(part))]
                width = layout.width([rollout for _, rollout in part])
                batch = rows(padded, layout, self.bench.tokenizer.pad_id, width)
                head_BEK = kept[name](params, tokens_of(batch))
                last_B = batch["mask_BC"].sum(axis=1).astype(int)
                found.append(head_BEK[np.arange(size), last_B][: len(part)])
        return np.concatenate(found) if found else np.zeros((0, 1), np.float32)

    def _headed(self, path: str) -> tuple[Decoder, dict]:
        model, params = self.bench.model, self.params
        if path:
            model, params = self.bench.other_model(path)
        if not model.shape.outputs:
            where = path or "the policy"
            raise ConfigError(
                [f"RewardHead: {where} has no scalar head (score.weight)"]
            )
        return model, params

    def _size(self, items: Sequence[Row]) -> int:
        """Rows a call: those of the decoder, which the mesh can cut."""
        recipe = self.bench.config.recipe
        sampling = recipe.sampling if recipe else self.bench.config.evaluation.sampling
        return sampling.rows

    def _layout(self, items: Sequence[Row]) -> Layout:
        """The run's columns, or wider ones where these rows (held-out prompts) are."""
        prompt, completion = longest(items)
        if self.bench.config.recipe is not None:
            layout = self.bench.layout
            if prompt <= layout.prompt and completion <= layout.completion:
                return layout
        return Layout.holding(prompt, completion)


def _unchanging(by: By) -> bool:
    """Whether it is the same model in all of the run."""
    return by != "policy" and not isinstance(by, Endpoint)
