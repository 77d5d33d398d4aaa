"""What scorers may ask of models: the policy, the model that the recipe started from, a
reward model. The scorers know nothing of meshes; they get this passed in."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxloop.config import ConfigError
from jaxloop.loop import store
from jaxloop.loop.reference import rollout_logps
from jaxloop.loop.workbench import Workbench
from jaxloop.models.decoder import Decoder
from jaxloop.scoring.scorer import Scorer, bind
from jaxloop.training.batches import Layout, Row, longest, rows, tokens_of
from jaxloop.training.step import make_head_scorer


def bound(bench: Workbench, scorer: Scorer, params: dict) -> Scorer:
    """The scorer with the models it asks for; `params` are the policy's."""
    return bind(scorer, LoopModels(bench, params))


@dataclass(frozen=True)
class LoopModels:
    """The models of a run. Those beside the policy are loaded once and stay on the
    devices."""

    bench: Workbench
    params: dict

    def logps(self, items: Sequence[Row], *, first: bool = False) -> np.ndarray:
        """(N,) float64: log-probability of each completion at temperature 1, summed,
        under the policy or under the `first` model, which the recipe started from."""
        kept = self.bench.kept
        if first and "first" not in kept:
            kept["first"] = store.load_seed(self.bench)
        params = kept["first"] if first else self.params
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
