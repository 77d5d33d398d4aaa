import sys

import pytest

from jaxloop.config import (
    ConfigError,
    apply_overrides,
    load_config,
    to_json,
    unknown_variant,
)

PLAIN = """
from dataclasses import dataclass
from jaxloop.config import unknown_variant

@dataclass(frozen=True)
class C:
    x: int = 1

def get_config(variant=None):
    match variant:
        case None: return C()
        case "tiny": return C(0)
    raise unknown_variant(variant, ["tiny", "large"])
"""


@pytest.fixture
def write(tmp_path):
    def put(text, name="experiments/x.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return put


def refused(spec):
    with pytest.raises(ConfigError) as caught:
        load_config(spec)
    return str(caught.value)


def test_variants(write):
    path = write(PLAIN)
    assert load_config(path).x == 1
    assert load_config(f"{path}:tiny").x == 0
    message = refused(f"{path}:tinny")
    assert (
        "unknown variant 'tinny' (known: tiny, large); did you mean 'tiny'?" in message
    )
    assert f"{path}:13: " in message
    assert "ValueError" not in message


def test_missing_files_find_the_nearest(write):
    path = write(PLAIN)
    assert path in refused(path.replace("x.py", "y.py"))
    assert f"did you mean {path}:tiny?" in refused(path.removesuffix(".py") + ":tiny")
    assert "variant after the colon" in refused(path + ":")
    assert "local disk" in refused("gs://bucket/x.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no get_config"),
        ("def get_config(variant=None):\n  return 3", "returned a int"),
        ("def get_config(a, b):\n  return 3", "write get_config"),
        ("x = 1\ny = z", "x.py:2: NameError: name 'z' is not defined"),
        ("x = 1\ny = (", "x.py:2: SyntaxError"),
        ("import nothing_of_that_name", "x.py:1: ModuleNotFoundError"),
        ("def get_config():\n  return 1 / 0", "x.py:2: ZeroDivisionError"),
        (
            "import json\ndef get_config():\n  json.loads('x')",
            "x.py:3: JSONDecodeError: Expecting value.*raised in .*decoder.py",
        ),
    ],
    ids=range(8),
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_file_without_variants_says_so(write):
    path = write(
        PLAIN.replace("variant=None", "").replace("match variant", "match None")
    )
    assert load_config(path).x == 1
    assert "has no variants" in refused(f"{path}:tiny")


def test_configs_import_one_another_and_share_classes(write):
    write(PLAIN, "experiments/base.py")
    path = write(
        "from experiments import base\n"
        "def get_config(variant=None):\n  return base.C(5)\n"
    )
    config = load_config(path)
    assert config.x == 5
    assert to_json(config)["_type"] == "experiments.base:C"
    assert apply_overrides(config, ["x=6"]).x == 6


def test_folders_of_one_name_do_not_mix(write):
    user = "from experiments import base\ndef get_config():\n  return base.C()\n"
    first, second = write(user, "1/experiments/x.py"), write(user, "2/experiments/x.py")
    write(PLAIN, "1/experiments/base.py")
    write(PLAIN.replace("= 1", "= 2"), "2/experiments/base.py")
    assert [load_config(p).x for p in (first, second, first)] == [1, 2, 1]


def test_an_edited_file_is_read_anew(write):
    assert load_config(write(PLAIN)).x == 1
    assert load_config(write(PLAIN.replace("x: int = 1", "x: int = 234"))).x == 234


def test_a_folder_named_like_a_package_gets_a_module_of_its_own(write):
    config = load_config(write(PLAIN, "json/x.py"))
    assert type(config).__module__.startswith("jaxloop_config_")
    import json

    assert json.loads("1") == 1
    assert "json.x" not in sys.modules


def test_a_missing_variant_is_told_the_known_ones():
    message = str(unknown_variant(None, [None, "irpo", "grpo"]))
    assert "name a variant" in message
    assert "irpo, grpo" in message
