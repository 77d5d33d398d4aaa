"""What teachers say of the student's samples (distillation)."""

from collections.abc import Sequence
from functools import partial

import jax

from jaxloop.loop import store
from jaxloop.loop.recipe import Teacher
from jaxloop.loop.reference import in_parts
from jaxloop.loop.workbench import Workbench
from jaxloop.prompts.context import with_context
from jaxloop.training.batches import (
    Batch,
    Layout,
    Row,
    longest_prompt,
    rows,
    tokens_of,
)
from jaxloop.training.teachers import make_mixed_teacher


class Teachers:
    """The teachers of a recipe on the devices; they never change."""

    def __init__(
        self, bench: Workbench, teacher: Teacher, temperature: float, *, parts: int
    ):
        self.bench, self.parts = bench, parts
        context, tokenizer = teacher.context, bench.tokenizer
        read = (with_context(p, context, tokenizer) for p in bench.data.train)
        self.prompts = {prompt.id: prompt for prompt in read}
        most = longest_prompt(self.prompts.values())
        self.layout = Layout.holding(most, bench.layout.completion)
        members = [
            bench.other_model(path) if path else (bench.model, store.load_seed(bench))
            for path in teacher.paths
        ]
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
        seen = [(self.prompts[prompt.id], rollout) for prompt, rollout in items]
        padded = [*seen, *[None] * (size - len(seen))]
        arrays = rows(padded, self.layout, self.bench.tokenizer.pad_id, C)
        with jax.set_mesh(self.bench.mesh):
            ids_BCK, logp_BCK = in_parts(
                partial(self._teach, *self.params),
                tokens_of(arrays),
                self.parts,
                self.bench.mesh,
            )
        return {"teacher_ids_BCK": ids_BCK, "teacher_logp_BCK": logp_BCK}
