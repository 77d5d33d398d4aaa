import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from jaxloop.config import (
    ABSENT,
    ConfigError,
    apply_overrides,
    changed_from,
    describe,
    diff,
    expand_sweep,
    format_diff,
    load_config,
    redact,
    redact_argv,
    to_json,
)


@dataclass(frozen=True)
class Box:
    value: Any


@dataclass(frozen=True)
class Rate:
    value: float


def dumped(config):
    return json.dumps(to_json(config), allow_nan=False)


def test_json_is_plain_and_the_same_for_equal_configs(config):
    text = dumped(config)
    assert text == dumped(apply_overrides(config, ["seed=0"]))
    assert text == dumped(dataclasses.replace(config))
    data = json.loads(text)
    assert data["_type"].endswith(":Config")
    assert data["recipe"]["filters"][1]["minimum"] == 0.25
    assert data["recipe"]["loss"] == {"_function": "math:sqrt", "source_sha256": None}
    assert data["recipe"]["out"] == "runs"


def test_json_tells_apart_what_differs(config):
    """Each settable number, flag or text of the configuration changes the JSON."""
    other = {bool: "true", int: "77", float: "0.75"}
    for item in describe(config):
        if type(item.value) in other and item.path:
            changed = apply_overrides(
                config, [f"{item.path}={other[type(item.value)]}"]
            )
            assert dumped(changed) != dumped(config), item.path


def test_whole_numbers_in_float_fields_are_floats():
    assert dumped(Rate(1)) == dumped(Rate(1.0))
    assert dumped(Box(1)) != dumped(Box(1.0))
    assert to_json(Rate(math.inf))["value"] == {"_float": "inf"}


def keep(x, y):
    return x, y


@pytest.mark.parametrize(
    "value",
    [object(), (1, object()), {"a": object()}, functools.partial(keep, object())],
    ids=["bare", "in a tuple", "in a mapping", "in a partial"],
)
def test_what_json_cannot_say_is_named(value):
    with pytest.raises(
        ConfigError, match=r"value.*: a builtins:object cannot be written"
    ):
        to_json(Box(value))


def write_config(folder, body, name="x"):
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / f"{name}.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from collections.abc import Callable\n"
        f"{body}\n"
        "@dataclass(frozen=True)\n"
        "class C:\n    f: Callable\n"
        "def get_config(variant=None):\n    return C(f)\n"
    )
    return str(file)


def test_the_hash_of_a_function_follows_its_source_only(tmp_path):
    one = to_json(
        load_config(write_config(tmp_path / "experiments", "def f(x):\n    return x"))
    )
    same = to_json(
        load_config(
            write_config(tmp_path / "b" / "experiments", "\n\ndef f(x):\n    return x")
        )
    )
    other = to_json(
        load_config(
            write_config(tmp_path / "c" / "experiments", "def f(x):\n    return -x")
        )
    )
    assert one == same
    assert [path for path, _, _ in diff(one, other)] == ["f"]
    line = format_diff(diff(one, other))
    assert line.count("experiments.x:f (source ") == 2  # same name, the hashes tell


def test_what_a_function_closes_over_counts():
    def scaled(factor):
        return lambda x: factor * x

    def recursive(n):
        return recursive(n - 1) if n else 0

    two, three = to_json(Box(scaled(2))), to_json(Box(scaled(3)))
    assert two["value"]["closure"] == {"factor": 2}
    assert two != three
    assert to_json(Box(scaled(2))) == two
    assert "closure" not in to_json(Box(recursive))["value"]
    partial = to_json(Box(functools.partial(keep, 2, y=Rate(1))))["value"]
    assert partial["args"] == [2]
    assert partial["keywords"]["y"]["value"] == 1.0


def test_diff_names_every_difference(config):
    items = ["seed=3", "recipe.filters.1.minimum=0.5", "recipe.sampling.stop=a"]
    old, new = to_json(config), to_json(apply_overrides(config, items))
    assert diff(old, new) == [
        ("recipe.sampling.stop", [], ["a"]),
        ("recipe.filters.1.minimum", 0.25, 0.5),
        ("seed", 0, 3),
    ]
    assert diff(old, json.loads(json.dumps(old))) == []


def test_diff_of_lengths_classes_and_missing_fields(config):
    old, new = to_json(config), to_json(apply_overrides(config, ["recipe.filters=()"]))
    changes = diff(old, new)
    assert [(path, new) for path, _, new in changes] == [
        ("recipe.filters.0", ABSENT),
        ("recipe.filters.1", ABSENT),
    ]
    assert "Filter(minimum=0.25, maximum=1.0) -> <absent>" in format_diff(changes)
    del old["seed"]
    assert diff(old, to_json(config)) == [("seed", ABSENT, 0)]
    assert [c[0] for c in diff(to_json(Box(Box(1))), to_json(Box(Rate(1))))] == [
        "value"
    ]


def test_true_is_not_one_but_one_is_one():
    assert diff({"a": True}, {"a": 1}) == [("a", True, 1)]
    assert diff({"a": 1}, {"a": 1.0}) == []
    assert diff({"a": [1, True]}, {"a": [1, 1]}) == [("a", [1, True], [1, 1])]


def test_the_table_of_changes_is_aligned(config):
    changed = apply_overrides(config, ["seed=3", "recipe.chatty=true"])
    assert changed_from(config, changed) == (
        "recipe.chatty  false -> true\nseed           0     -> 3"
    )
    assert changed_from(config, config) == ""


def test_secrets_are_blanked_everywhere(config):
    secret = apply_overrides(config, ["recipe.api_key=hush"])
    assert "hush" not in dumped(secret)
    assert "hush" not in changed_from(config, secret)
    argv = ["recipe.api_key=hush", "--hf_token", "hush", "--key", "x", "a.b=1"]
    assert "hush" not in " ".join(redact_argv(argv))
    assert redact_argv(argv)[-1] == "a.b=1"
    for name in ("max_new_tokens", "eos_token", "tokenizer", "key", "a.author"):
        assert redact(name, "kept") == "kept"
    for value in ("hf_" + "a" * 30, "gs://user:pass@host/x", ("AKIA" + "A" * 16,)):
        assert "<redacted>" in str(redact("note", value))


def test_sweeps_are_the_cartesian_product():
    assert expand_sweep("a=1,2 b=3,4") == [
        ["a=1", "b=3"],
        ["a=1", "b=4"],
        ["a=2", "b=3"],
        ["a=2", "b=4"],
    ]
    assert expand_sweep("t=(1,2),(3,4)") == [["t=(1,2)"], ["t=(3,4)"]]
    assert expand_sweep("--a 1,2 s='x y,z'") == [
        ["a=1", "s=x y"],
        ["a=1", "s=z"],
        ["a=2", "s=x y"],
        ["a=2", "s=z"],
    ]


def test_sweeps_that_say_nothing_are_refused():
    with pytest.raises(ConfigError) as caught:
        expand_sweep("a= b=1 b=2 c")
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="empty"):
        expand_sweep(" ")
    with pytest.raises(ConfigError, match="quotation"):
        expand_sweep("a='1")
