"""Which errors are another process's fault."""

import jax
import pytest

from jaxloop import distributed


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: [tcp/pair.cc:547] Connection closed by", 1),
        ("UNAVAILABLE: The following tasks are unhealthy", 1),
        ("DEADLINE_EXCEEDED: Barrier timed out", 1),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2 bytes", 0),
        ("INTERNAL: the compiler is wrong", 0),
    ],
)
def test_a_lost_process_is_told_from_other_faults(monkeypatch, text, lost):
    error = jax.errors.JaxRuntimeError(text)
    assert not distributed.is_lost_peer(error)  # one process has lost nobody
    monkeypatch.setattr(distributed, "many", lambda: True)
    assert distributed.is_lost_peer(error) == bool(lost)
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert distributed.is_lost_peer(wrapped) == bool(lost)
    assert not distributed.is_lost_peer(ValueError(text))


def test_one_process_asks_nobody():
    """And what it is given stays as it is."""
    tree = {"a": [1, 2]}
    assert distributed.told(lambda: tree) is tree
    assert distributed.place(tree, None) is tree  # pyright: ignore[reportArgumentType]
    distributed.same_everywhere("it", lambda: pytest.fail("looked at"), "")
    assert distributed.is_first()
    with pytest.raises(OSError, match="own"):
        distributed.told(lambda: (_ for _ in ()).throw(OSError("own")))
