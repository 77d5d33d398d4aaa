"""From the scored rollouts of an online step to the batch of its updates."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from jaxloop.loop.actors import Actors
from jaxloop.loop.contrast import token_rewards
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.loop.reference import in_parts, rollout_logps
from jaxloop.loop.round_training import (
    known_logps,
    layout_for,
    rows_each,
    rows_under,
)
from jaxloop.loop.selecting import apply_filters, select
from jaxloop.loop.teachers import Teachers
from jaxloop.loop.updates import Line
from jaxloop.loop.workbench import Workbench, rng
from jaxloop.losses.objective import Objective
from jaxloop.records import Scored
from jaxloop.selection.grouping import groups as as_groups
from jaxloop.training.batches import Batch, Row, example_batch, group_batch, tokens_of
from jaxloop.training.step import make_head_scorer


class StepBatches:
    """Makes the batches of a recipe; what it compiled is kept from step to step."""

    def __init__(
        self, bench: Workbench, recipe: Recipe, actors: Actors, temperature: float
    ):
        self.bench, self.recipe, self.actors = bench, recipe, actors
        self.temperature = temperature
        self.parts = recipe.schedule.accumulation
        self.held: Batch = {}  # of the last step; a step may have several updates
        self.teachers = None
        if recipe.teacher is not None:
            self.teachers = Teachers(
                bench, recipe.teacher, temperature, parts=self.parts
            )
        self._head = None
        if "head" in recipe.objective.needs:
            start = bench.layout.start
            self._head = make_head_scorer(bench.model, bench.mesh, start=start)

    def make(
        self, params: dict, scored: Sequence[Scored], step: int
    ) -> tuple[Batch, Line]:
        """The batch, and what is logged of how it came about."""
        if self.recipe.objective.trains_on == "groups":
            return self._of_groups(params, scored)
        return self._of_examples(scored, step)

    def _of_groups(self, params: dict, scored: Sequence[Scored]) -> tuple[Batch, Line]:
        """All rollouts, with their advantages where the objective wants them; dropped
        prompts are rows that do not count."""
        recipe, bench, schedule = self.recipe, self.bench, self.recipe.schedule
        assert isinstance(schedule, Online)
        kept, dropped, _ = apply_filters(recipe.filters, scored)
        size = schedule.prompts * recipe.sampling.n
        of_tokens = getattr(recipe.advantage, "of_tokens", None)
        advantage = None if of_tokens else recipe.advantage
        groups = as_groups(kept, advantage or np.zeros_like)
        batch = group_batch(groups, bench.layout, bench.tokenizer.pad_id, size)
        items = [(g.prompt, rollout) for g in groups for rollout in g.rollouts]
        if self.actors.copies_sampler:  # else it is the trained weights that sampled
            if _corrects(recipe.objective):
                sampler = self.actors.trees["sampler"]
                batch["old_logp_BC"] = self._logps(sampler, items, batch)
            else:
                batch["old_logp_BC"] = batch.pop("sampler_logp_BC")
        elif schedule.updates > 1:
            batch["old_logp_BC"] = self._logps(params, items, batch)
        if self.actors.copies_reference:
            reference = self.actors.trees["reference"]
            batch["reference_logp_BC"] = self._logps(reference, items, batch)
        if self.teachers is not None:
            batch |= self.teachers.choices(items, batch)
        if self._head is not None and of_tokens is not None:
            batch |= self._token_advantages(of_tokens, params, batch)
        return batch, {f"dropped/{name}": float(n) for name, n in dropped.items()}

    def _logps(self, params: dict, items: list[Row], batch: Batch) -> np.ndarray:
        """(B, C) under `params`, at the temperature of the objective."""
        size, C = batch["mask_BC"].shape
        logp_BC = rollout_logps(
            self.bench,
            params,
            items,
            size // self.parts,
            layout=self.bench.layout,
            temperature=self.temperature,
        )
        out_BC = np.zeros((size, C), np.float32)
        out_BC[: len(items)] = logp_BC[:, :C]
        return out_BC

    def _token_advantages(
        self, of_tokens: Callable, params: dict, batch: Batch
    ) -> Batch:
        """Values, returns and advantages by token; the reward comes with the last."""
        assert self._head is not None
        with jax.set_mesh(self.bench.mesh):
            head = partial(self._head, params)
            mesh = self.bench.mesh
            head_BEK = in_parts(head, tokens_of(batch), self.parts, mesh)
        mask_BC = batch["mask_BC"]
        scored_B = np.isfinite(batch["reward_B"])
        last_B = (mask_BC * np.arange(mask_BC.shape[1])).argmax(axis=1)
        reward_BC = np.zeros_like(mask_BC)
        reward_BC[np.arange(len(last_B)), last_B] = np.nan_to_num(batch["reward_B"])
        mask_BC = mask_BC * (scored_B & (batch["valid_B"] > 0))[:, None]
        made = of_tokens(
            reward_BC,
            head_BEK[:, :-1, 0],
            mask_BC,
            old_logp_BC=batch[
                "old_logp_BC" if "old_logp_BC" in batch else "sampler_logp_BC"
            ],
            reference_logp_BC=batch.get("reference_logp_BC"),
        )
        arrays = {name: np.asarray(x, np.float32) for name, x in made.items()}
        return arrays | {"valid_B": batch["valid_B"] * scored_B}

    def _of_examples(self, scored: Sequence[Scored], step: int) -> tuple[Batch, Line]:
        """The step's pairs or labelled completions, with the reference's
        log-probabilities where the objective has one."""
        recipe, bench = self.recipe, self.bench
        objective, kind = recipe.objective, recipe.objective.trains_on
        selected = select(recipe, scored, rng(bench.config.seed, "selection", step))
        most = getattr(recipe.selector, "pairs", 1)
        if kind == "labelled":
            most = recipe.sampling.n
        size = recipe.schedule.prompts * most
        if len(selected.examples) > size:
            raise ValueError(
                f"{type(recipe.selector).__name__} made {len(selected.examples)} "
                f"{kind} of {recipe.schedule.prompts} prompts, more than {size}: give "
                "it a field `pairs`, the most pairs that it makes of one prompt"
            )
        logps, layout = {}, layout_for(bench, selected.examples)
        if self.actors.copies_reference and selected.examples:
            reference = self.actors.trees["reference"]
            given = objective, reference, selected.examples, size // self.parts
            logps["reference_logp_BC"] = known_logps(bench, *given, layout)
            if recipe.contrast is not None:
                logps["token_reward_BC"] = token_rewards(
                    bench, recipe.contrast, *given, partial(layout_for, bench)
                )
        batch = example_batch(
            selected.examples,
            rows_under(objective, selected.examples),
            layout,
            bench.tokenizer.pad_id,
            size,
            logps,
            kind=kind,
            each=rows_each(objective),
            edits="edits" in objective.needs,
        )
        if self.actors.copies_reference and not logps:
            batch["reference_logp_BC"] = np.zeros_like(batch["mask_BC"])
            if recipe.contrast is not None:
                batch["token_reward_BC"] = np.zeros_like(batch["mask_BC"])
        dropped = {f"dropped/{name}": float(n) for name, n in selected.dropped.items()}
        return batch, selected.metrics | dropped


def _corrects(objective: Objective) -> bool:
    """Whether some part looks at the gap between sampler and trainer."""
    parts = getattr(objective, "parts", (objective,))
    return any(
        getattr(part, "off_policy", None) is not None or getattr(part, "bypass", False)
        for part in parts
    )
