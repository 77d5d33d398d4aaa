"""What teachers say of the student's samples (distillation)."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxloop.config import ConfigError
from jaxloop.loop import store
from jaxloop.loop.recipe import Teacher
from jaxloop.loop.workbench import Workbench, longest_prompt
from jaxloop.models.decoder import Decoder
from jaxloop.models.huggingface import load_params, read_shape, resolve_model_path
from jaxloop.records import Prompt
from jaxloop.training.batches import Batch, Layout, Row, bucket, rows
from jaxloop.training.teachers import make_mixed_teacher


class Teachers:
    """The teachers of a recipe on the devices; they never change."""

    def __init__(self, bench: Workbench, teacher: Teacher, temperature: float):
        self.bench, self.teacher = bench, teacher
        self.longer = {p.id: self._richer(p) for p in bench.data.train}
        longest = longest_prompt(list(self.longer.values()))
        self.layout = Layout(bucket(longest, longest), bench.layout.completion)
        members = [_load(bench, path) for path in teacher.paths]
        self.params = [params for _, params in members]
        self._teach = make_mixed_teacher(
            [model for model, _ in members],
            bench.mesh,
            start=self.layout.start,
            k=min(teacher.k, bench.tokenizer.size),
            vocab=bench.tokenizer.size,
            temperature=temperature,
        )

    def choices(self, items: Sequence[Row], batch: Batch) -> Batch:
        """`teacher_ids_BCK` and `teacher_logp_BCK` for the rows of a batch."""
        size, C = batch["mask_BC"].shape
        seen = [(self.longer[prompt.id], rollout) for prompt, rollout in items]
        padded = [*seen, *[None] * (size - len(seen))]
        arrays = rows(padded, self.layout, self.bench.tokenizer.pad_id, C)
        wanted = ("tokens_BT", "positions_BT", "segments_BT")
        with jax.set_mesh(self.bench.mesh):
            told = self._teach(*self.params, {name: arrays[name] for name in wanted})
        ids_BCK, logp_BCK = map(np.asarray, told)
        return {"teacher_ids_BCK": ids_BCK, "teacher_logp_BCK": logp_BCK}

    def _richer(self, prompt: Prompt) -> Prompt:
        """The prompt as the teacher reads it."""
        if not self.teacher.context:
            return prompt
        try:
            text = self.teacher.context.format_map(prompt.columns)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                [
                    f"recipe.teacher.context: {self.teacher.context!r} does not fit "
                    f"the row of prompt {prompt.id!r} ({error!r}); its fields are "
                    f"{', '.join(prompt.columns) or '(none)'}"
                ]
            ) from error
        bos = self.bench.tokenizer.bos_ids
        if prompt.token_ids[: len(bos)] != bos:
            bos = ()
        told = self.bench.tokenizer.encode(text)
        ids = (*bos, *told, *prompt.token_ids[len(bos) :])
        return dataclasses.replace(prompt, token_ids=ids)


def _load(bench: Workbench, path: str) -> tuple[Decoder, dict]:
    """A model of its own size in the run's dtypes, or the one that the recipe starts
    from."""
    if not path:
        return bench.model, store.load_seed(bench)
    where = resolve_model_path(path, None)
    shape = read_shape(where)
    if shape.vocab < bench.tokenizer.size:
        raise ConfigError(
            [
                f"recipe.teacher.paths: {path} embeds {shape.vocab} tokens, the "
                f"student's tokenizer has {bench.tokenizer.size}: they must share it"
            ]
        )
    model = Decoder(shape, bench.model.dtype)
    return model, load_params(where, shape, bench.mesh, bench.config.model.param_dtype)
