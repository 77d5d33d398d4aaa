"""What scorers may ask of models: the policy, the model that the recipe started from,
others from directories. The scorers know nothing of meshes; they get this passed in."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxloop.config import ConfigError
from jaxloop.loop import store
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import append_records, whole_records
from jaxloop.loop.reference import rollout_logps
from jaxloop.loop.workbench import Workbench
from jaxloop.models.decoder import Decoder
from jaxloop.models.huggingface import resolve_model_path
from jaxloop.prompts.tokenizer import load_tokenizer
from jaxloop.records import Prompt, Rollout, Scored
from jaxloop.sampling.engine import Engine
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.scorer import Scorer, bind
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
) -> Scorer:
    """The scorer with the models it asks for: `LoopModels`."""
    models = LoopModels(bench, params, judging_key, version, journal)
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

    def prompts(self, texts: Mapping[str, str], *, by: str = "policy") -> list[Prompt]:
        """A prompt for each id and text: as a user's message where the tokenizer has a
        chat template, else as it is."""
        tokenizer = self._writer(by)[0].tokenizer

        def encoded(text: str) -> tuple[int, ...]:
            if tokenizer.chat_template is None:
                return tokenizer.encode_prompt(text)
            message = {"role": "user", "content": text}
            return tokenizer.chat_ids([message], add_generation_prompt=True)

        return [Prompt(id, text, encoded(text)) for id, text in texts.items()]

    def special_tokens(self, *, by: str = "policy") -> Collection[str]:
        """The special and other added tokens of that model's tokenizer, as text: role
        tokens are not special in all of them. Runs of spaces are none of these."""
        tokenizer = self._writer(by)[0].tokenizer.hf
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        return {t for t in {*tokenizer.all_special_tokens, *added} if t.strip()}

    def write(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, by: str = "policy"
    ) -> list[tuple[Rollout, ...]]:
        """`sampling.n` rollouts of each prompt, by the "policy", the "first" model or
        that of a directory."""
        engine, params = self._writer(by)
        written: dict[str, tuple[Rollout, ...]] = {}
        if self.journal is not None:
            kept = whole_records(self.journal, Scored)
            written = {row.prompt.id: row.rollouts for row in kept}
        waiting = [prompt for prompt in prompts if prompt.id not in written]
        size = max(8 * sampling.rows // sampling.n, 1)
        total = len(waiting) * sampling.n
        if self.journal is not None:
            self.bench.progress.phase("judging", total=total)
        for place in range(0, len(waiting), size):
            part = waiting[place : place + size]
            rollouts = sample(
                self.bench,
                params,
                part,
                sampling,
                self.key,
                self.version,
                done=place * sampling.n,
                show=self.journal is not None,
                engine=engine,
            )
            written |= {p.id: r for p, r in zip(part, rollouts, strict=True)}
            if self.journal is not None:
                rows = [Scored(p, written[p.id], ()) for p in part]
                append_records(self.journal, rows)
        return [written[prompt.id] for prompt in prompts]

    def _writer(self, by: str) -> tuple[Engine, dict]:
        """Who writes: an engine and its parameters."""
        if by == "policy":
            return self.bench.engine, self.params
        if by == "first":
            return self.bench.engine, self._first()
        kept, name = self.bench.kept, f"engine {by}"
        model, params = self.bench.other_model(by, own_tokenizer=True)
        if name not in kept:
            tokenizer = load_tokenizer(str(resolve_model_path(by)))
            kept[name] = Engine(model, tokenizer, self.bench.mesh)
        return kept[name], params

    def _first(self) -> dict:
        kept = self.bench.kept
        if "first" not in kept:
            kept["first"] = store.load_seed(self.bench)
        return kept["first"]

    def logps(self, items: Sequence[Row], *, first: bool = False) -> np.ndarray:
        """(N,) float64: log-probability of each completion at temperature 1, summed,
        under the policy or under the `first` model, which the recipe started from."""
        params = self._first() if first else self.params
        layout, size = self._layout(items), self._size(items)
        logp_NC = rollout_logps(self.bench, params, items, size, layout=layout)
        return logp_NC.astype(np.float64).sum(axis=1)

    def outputs(self, items: Sequence[Row], *, path: str = "") -> np.ndarray:
        """(N, K) float32: the scalar head after the last token of each completion."""
        layout, size = self._layout(items), self._size(items)
        model, params = self._headed(path)
        name = f"head of {path or 'the policy'} from {layout.start}"
        kept = self.bench.kept
        if name not in kept:
            mesh = self.bench.mesh
            kept[name] = make_head_scorer(model, mesh, start=layout.start)
        found = []
        with jax.set_mesh(self.bench.mesh):
            for place in range(0, len(items), size):
                self.bench.interrupt.check()
                part = list(items[place : place + size])
                padded = [*part, *[None] * (size - len(part))]
                width = layout.width([rollout for _, rollout in part])
                batch = rows(padded, layout, self.bench.tokenizer.pad_id, width)
                head_BEK = np.asarray(kept[name](params, tokens_of(batch)))
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
