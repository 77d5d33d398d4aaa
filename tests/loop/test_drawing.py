"""Samples that are drawn part by part, and what progress says of them."""

import contextlib
import io
from types import SimpleNamespace

import jax

from jaxloop.loop.drawing import sample
from jaxloop.mesh import make_mesh
from jaxloop.progress import Progress
from jaxloop.sampling.settings import Sampling


class Engine:
    """Draws ten samples of a hundred tokens each."""

    mesh = make_mesh()

    def __init__(self, clock):
        self.clock = clock

    def sample(self, *_, on_progress, **__):
        for done in range(1, 11):
            self.clock.now += 1.0
            on_progress(done, 10, 100 * done)
        return []


def test_tokens_are_counted_over_all_parts():
    clock = SimpleNamespace(now=0.0)
    shown = io.StringIO()
    progress = Progress("plain", stream=shown, clock=lambda: clock.now, every=1e9)
    bench = SimpleNamespace(
        progress=progress,
        interrupt=SimpleNamespace(check=lambda: None),
        attempt=SimpleNamespace(spending=lambda name: contextlib.nullcontext()),
        engine=Engine(clock),
    )
    progress.phase("sampling", total=20)
    for done in (0, 10):
        arguments = ({}, [], Sampling(), jax.random.key(0), 0)
        sample(bench, *arguments, done=done)  # type: ignore
    progress.close()
    assert "20/20 (100%) · 1 samples/s · 100 tokens/s" in shown.getvalue()
