"""The weights that act beside the trained ones: the sampler's and the reference's."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxloop.loop.recipe import Online
from jaxloop.losses.objective import Objective

copy_tree = jax.jit(partial(jax.tree.map, jnp.copy))


class Actors:
    """The weights that sample and the weights that are the reference, where they are
    not the trained ones, and the step at which each was copied."""

    def __init__(self, schedule: Online, objective: Objective):
        self.schedule = schedule
        self.copies_sampler = schedule.sync_every != 1
        self.copies_reference = "reference" in objective.needs
        self.trees: dict[str, dict] = {}
        self.sampler_step = 0

    def names(self) -> list[str]:
        wanted = {"sampler": self.copies_sampler, "reference": self.copies_reference}
        return [name for name, copied in wanted.items() if copied]

    def begin(self, params: dict) -> None:
        self.trees = {name: copy_tree(params) for name in self.names()}

    def refresh(self, params: dict, step: int) -> None:
        """What is due before step `step` (from 0) samples."""
        every, every_reference = (
            self.schedule.sync_every,
            self.schedule.sync_reference_every,
        )
        if every == 1:
            self.sampler_step = step
        elif every and step and step % every == 0:
            self.trees["sampler"], self.sampler_step = copy_tree(params), step
        due = every_reference and step and step % every_reference == 0
        if self.copies_reference and due:
            self.trees["reference"] = copy_tree(params)

    def sampler(self, params: dict) -> dict:
        return self.trees["sampler"] if self.copies_sampler else params
