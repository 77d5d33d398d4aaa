"""A run so small that it takes a second: the same line as the quickstart's."""

from dataclasses import dataclass, replace

import numpy as np

from jaxloop.experiment import Characters, Checkpointing, Config, Model
from jaxloop.loop.recipe import (
    Evaluation,
    Online,
    Recipe,
    Rounds,
    SupervisedStage,
)
from jaxloop.losses.objectives import Pairwise, Policy, Supervised
from jaxloop.mesh import MeshShape
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.dataset import Dataset
from jaxloop.records import Demonstration, Prompt, Score, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.selection.advantages import GroupAdvantage
from jaxloop.selection.selectors import AllCorrect, BestWorst
from jaxloop.training.optimizer import Optimizer


@dataclass(frozen=True)
class Digits:
    """Prompts `3+` and demonstrations of random digits."""

    prompts: int = 24

    def load(self, tokenizer) -> Dataset:
        rng = np.random.default_rng(0)

        def prompt(split: str, i: int) -> Prompt:
            text = f"{i % 10}{i // 10}+"
            return Prompt(f"{split}{i}", text, tokenizer.encode(text), {})

        def demonstration(i: int) -> Demonstration:
            question = tokenizer.encode(f"{i % 10}{i // 10}+")
            digits = "".join(map(str, rng.integers(0, 10, rng.integers(1, 5))))
            answer = (*tokenizer.encode(digits), tokenizer.eos_ids[0])
            mask = (0,) * len(question) + (1,) * len(answer)
            return Demonstration(str(i), question + answer, mask)

        return Dataset(
            train=[prompt("train", i) for i in range(self.prompts)],
            test=[prompt("test", i) for i in range(8)],
            demonstrations=[demonstration(i) for i in range(self.prompts)],
        )


@dataclass(frozen=True)
class CountNines:
    """A score that is easy to raise and has several values: the share of nines."""

    def __call__(self, prompts, rollouts) -> list[Scored]:
        def score(text: str) -> Score:
            return Score(text.count("9") / max(len(text), 1), answer=text)

        return [
            Scored(prompt, group, tuple(score(r.text) for r in group))
            for prompt, group in zip(prompts, rollouts, strict=True)
        ]


SAMPLING = Sampling(n=4, max_new_tokens=8, rows=16, prefill_rows=8, chunk=4)
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup=2, schedule="linear")


def config(kind: str, out, **changes) -> Config:
    """`kind`: dpo, rft, grpo or semi_online."""
    recipes = {
        "dpo": Recipe(
            SAMPLING,
            CountNines(),
            Pairwise(beta=0.1, nll=1.0),
            Rounds(2, prompts=16, epochs=2, batch_size=8),
            selector=BestWorst(),
            optimizer=OPTIMIZER,
        ),
        "rft": Recipe(
            SAMPLING,
            CountNines(),
            Supervised(),
            Rounds(2, prompts=16, epochs=4, batch_size=2, row_tokens=32, start="seed"),
            selector=AllCorrect(threshold=0.1),
            optimizer=OPTIMIZER,
        ),
        "grpo": Recipe(
            SAMPLING,
            CountNines(),
            Policy(kl=0.01),
            Online(5, prompts=4),
            advantage=GroupAdvantage(),
            optimizer=OPTIMIZER,
        ),
        "semi_online": Recipe(
            SAMPLING,
            CountNines(),
            Pairwise(beta=0.1),
            Online(6, prompts=4, sync_every=3, sync_reference_every=2),
            selector=BestWorst(),
            optimizer=OPTIMIZER,
        ),
    }
    shape = ModelShape(
        vocab=16, width=16, ffn=32, layers=2, heads=2, kv_heads=2, head_dim=8
    )
    base = Config(
        name=kind,
        model=Model(shape=shape, dtype="float32", remat="none"),
        data=Digits(),
        tokenizer=Characters("0123456789+=;#"),
        sft=SupervisedStage(steps=4, batch_size=4, row_tokens=32, optimizer=OPTIMIZER),
        recipe=recipes[kind],
        evaluation=Evaluation(
            scorer=CountNines(),
            sampling=replace(SAMPLING, n=1, temperature=0.0),
            every=3,
        ),
        checkpoint=Checkpointing(every=2),
        mesh=MeshShape(data=1),
        tensorboard=False,
        out=str(out),
    )
    return replace(base, **changes)
