"""Drawing rollouts: interruptible, and seen to get on."""

from collections.abc import Sequence

import jax

from jaxloop.loop.workbench import Workbench
from jaxloop.records import Prompt, Rollout
from jaxloop.sampling.engine import Engine
from jaxloop.sampling.settings import Sampling


def sample(
    bench: Workbench,
    params: dict,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    sampling_key: jax.Array,
    version: int,
    *,
    done: int = 0,
    show: bool = True,
    engine: Engine | None = None,
    shared: int = 0,
) -> list[tuple[Rollout, ...]]:
    """Rollouts of `prompts`; a safe point all the way through.

    Shows progress: `done` rollouts came before these. `engine`: that of another model
    than the policy. `shared`: so many tokens at their beginning are the same in all.
    """

    before = bench.progress.tokens() if done else 0.0

    def on_progress(finished: int, total: int, tokens: int) -> None:
        bench.interrupt.check()
        if show:
            bench.progress.update(done + finished, tokens=before + tokens)

    # A judge draws while the host would else be waited for.
    engine = engine or bench.engine
    with jax.set_mesh(engine.mesh), bench.attempt.spending("productive"):
        return engine.sample(
            params,
            prompts,
            sampling,
            key=sampling_key,
            shared=shared,
            version=version,
            on_progress=on_progress,
        )
