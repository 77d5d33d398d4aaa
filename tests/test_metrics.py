import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.metrics import MetricsWriter, comparable, is_timing, read_metrics


def values(lines):
    return [comparable(line) for line in lines]


def write(out, steps, tensorboard=False, **metrics):
    with MetricsWriter(out, tensorboard=tensorboard) as writer:
        for step in steps:
            writer.write(step, metrics or {"loss": step / 3}, phase="sft")


def test_one_strict_line_an_event(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(
            3, {"loss": 0.1, "reward": np.float32(0.1)}, phase="round", round=1
        )
        # Flushed: a reader sees the line while the writer is still open.
        (line,) = read_metrics(tmp_path)
    assert list(line) == ["step", "phase", "round", "loss", "reward", "time"]
    assert (line["step"], line["phase"], line["round"]) == (3, "round", 1)
    assert line["reward"] == float(np.float32(0.1)) != 0.1


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_bit_for_bit(tmp_path_factory, value):
    out = tmp_path_factory.mktemp("run")
    write(out, [1], x=value)
    (line,) = read_metrics(out)
    assert struct.pack("d", line["x"]) == struct.pack("d", value)


def test_nonfinite_values_are_null_and_named(tmp_path):
    write(tmp_path, [1], loss=math.nan, kl=-math.inf, reward=0.5)
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    line = json.loads(text, parse_constant=refuse)
    assert line["nonfinite"] == ["loss", "kl"]
    assert line["loss"] is None
    assert line["kl"] is None
    assert line["reward"] == 0.5


@pytest.mark.parametrize("value", [jnp.ones(()), np.ones(2), "0.5", None])
def test_what_is_not_a_number_is_named(tmp_path, value):
    with pytest.raises(TypeError, match="'loss'"):
        write(tmp_path, [1], loss=value)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("name", ["step", "round", "phase", "nonfinite"])
def test_taken_names_are_refused(tmp_path, name):
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(ValueError, match=name),
    ):
        writer.write(1, {name: 1.0}, phase="sft")


@pytest.mark.parametrize("torn", ["", '{"step": 9, "pha', '{"step": 9', "x" * 10_000])
def test_a_torn_last_line_is_ignored_and_removed(tmp_path, torn):
    write(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, [3])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_cut_and_continued_equals_uninterrupted(tmp_path):
    write(tmp_path / "whole", range(10))
    with MetricsWriter(tmp_path / "cut", tensorboard=False) as writer:
        for step in range(5):
            writer.write(step, {"loss": step / 3}, phase="sft")
        offset = writer.offset()
        for step in range(5, 8):
            writer.write(step, {"loss": -1.0}, phase="sft")
    assert offset < (tmp_path / "cut" / "metrics.jsonl").stat().st_size
    with MetricsWriter(tmp_path / "cut", tensorboard=False) as writer:
        writer.truncate_to(offset)
        assert writer.offset() == offset
        for step in range(5, 10):
            writer.write(step, {"loss": step / 3}, phase="sft")
    whole, cut = (read_metrics(tmp_path / name) for name in ("whole", "cut"))
    assert values(whole) == values(cut)


@pytest.mark.parametrize("shift", [-1, 1, -(10**6)])
def test_an_offset_that_ends_no_line_is_refused(tmp_path, shift):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0}, phase="sft")
        with pytest.raises(ValueError, match=r"metrics\.jsonl cannot be cut back"):
            writer.truncate_to(writer.offset() + shift)
        assert len(read_metrics(tmp_path)) == 1


def test_comparable_drops_timings_only():
    line = {"step": 1, "loss": 2.0, "time": 3.0, "step_time": 4.0, "timestamp": 0.0}
    timings = {"timing_s/gen": 5.0, "perf/mfu": 6.0}
    assert comparable(line | timings) == {"step": 1, "loss": 2.0, "timestamp": 0.0}
    assert not is_timing("rewards/timing_s/mean")


def tensorboard_points(out):
    """(tag, step) -> values, as TensorBoard's reader leaves them: a session that starts
    at step s removes every earlier event from s on."""
    from tensorboardX.proto import event_pb2

    points = {}
    for path in sorted((out / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            if event.session_log.status == event_pb2.SessionLog.START:
                points = {key: v for key, v in points.items() if key[1] < event.step}
            for value in event.summary.value:
                points.setdefault((value.tag, event.step), []).append(
                    value.simple_value
                )
    return points


def test_tensorboard_has_each_event_once_after_a_resume(tmp_path):
    def events(writer, phase, steps, bias=0.0):
        for step in steps:
            writer.write(step, {"loss": step + bias, "kl": math.nan}, phase=phase)

    with MetricsWriter(tmp_path) as writer:
        events(writer, "sft", range(6))
        events(writer, "round", range(3))
        offset = writer.offset()
        events(writer, "round", range(3, 5), bias=100)
    with MetricsWriter(tmp_path) as writer:
        writer.truncate_to(offset)
        events(writer, "round", range(3, 7))
    expected = {("sft/loss", step): [step] for step in range(6)}
    expected |= {("round/loss", step): [step] for step in range(7)}
    assert tensorboard_points(tmp_path) == expected


def test_tensorboard_can_be_off(tmp_path):
    write(tmp_path, [1], tensorboard=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
