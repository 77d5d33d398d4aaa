"""Which host is told to be slow, and when."""

import numpy as np

from jaxloop.loop.stragglers import ROW, Stragglers


def test_a_host_is_named_once_it_was_slow_for_long():
    said = []
    stragglers = Stragglers(said.append)
    for _ in range(ROW - 1):
        figures = stragglers.of(np.array([1.0, 1.2, 5.0, 0.8]))
    assert figures == {
        "perf/host_s_min": 0.8,
        "perf/host_s_median": 1.1,
        "perf/host_s_max": 5.0,
        "perf/slowest_host": 2.0,
    }
    assert not said
    for _ in range(ROW):
        stragglers.of(np.array([1.0, 1.2, 5.0, 0.8]))
    assert len(said) == 1
    assert said[0].startswith("host 2 is slow: 5.00 s")


def test_changing_hosts_and_even_ones_are_not():
    said = []
    stragglers = Stragglers(said.append)
    for update in range(3 * ROW):
        slow = [1.0, 1.0, 1.0]
        slow[update % 2] = 4.0
        stragglers.of(np.array(slow))
    for _ in range(3 * ROW):
        stragglers.of(np.array([1.0, 1.9, 1.2]))
    assert not said


def test_a_single_process_has_no_figures():
    assert Stragglers(print).figures(1.0) == {}
