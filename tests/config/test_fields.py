import dataclasses
from dataclasses import dataclass, make_dataclass

from jaxloop.config import apply_overrides, describe, format_help, type_problems


def test_every_leaf_is_described_once_with_type_value_default_and_help(config):
    fields = {item.path: item for item in describe(config)}
    assert len(fields) == len(describe(config))
    assert next(iter(fields)) == "seed"  # own fields before those of the parts
    minimum = fields["recipe.filters.1.minimum"]
    assert (minimum.type, minimum.value, minimum.default) == (float, 0.25, 0.0)
    assert minimum.help == "Least share of votes."
    assert minimum.settable
    assert fields["recipe.inherited"].help == "From the base class."
    assert fields["recipe.sampling.stop"].help == "Texts that end a sample."
    assert fields["recipe.scaling"].value is None
    assert not fields["recipe.loss"].settable
    assert "recipe.sampling" not in fields


def test_every_settable_field_takes_the_value_that_is_shown(config):
    """What --help prints can be pasted back, strings without their quotes."""
    for item in describe(config):
        if item.settable:
            text = item.shown.strip('"')
            assert apply_overrides(config, [f"{item.path}={text}"]) == config, item


def test_help_shows_every_field(config):
    text = format_help(config)
    for item in describe(config):
        assert f"  {item.path}: " in text
        assert item.help in " ".join(text.split())
    for line in [
        "recipe.filters.1.minimum: float = 0.25  (class default 0.0)",
        "recipe.loss: function = math:sqrt  [set it in the config file]",
        "recipe.scaling: Scaling | None = None  [set it in the config file]",
        'recipe.optimizer: "adam" | "sgd" = "adam"',
        "recipe.sampling: Sampling\n        How answers are drawn.",
        "recipe.filters.0: Filter\n        Drops prompts.",
    ]:
        assert line in text, line
    assert "Sampling(" not in text  # the docstring that dataclass makes up
    assert max(map(len, text.splitlines())) <= 88


def test_a_secret_is_not_in_the_help(config):
    changed = apply_overrides(config, ["recipe.api_key=hush"])
    assert "hush" not in format_help(changed)


def test_classes_without_source_have_fields_but_no_help():
    made = make_dataclass("Made", [("x", int, 3)], frozen=True)
    (item,) = describe(made())
    assert (item.path, item.value, item.help) == ("x", 3, "")


def test_a_part_in_a_field_of_any_type_is_opened():
    @dataclass(frozen=True)
    class Mine:
        """A scorer of the user's."""

        bonus: float = 0.5
        """Added to every score."""

    @dataclass(frozen=True)
    class Outer:
        scorer: object
        names: object = "a"

    config = Outer(Mine())
    fields = {item.path: item for item in describe(config)}
    assert fields["scorer.bonus"].help == "Added to every score."
    assert fields["scorer.bonus"].default == 0.5
    changed = apply_overrides(config, ["scorer.bonus=2", "names=b"])
    assert changed == Outer(Mine(2.0), "b")
    assert fields["names"].default == "a"
    assert dataclasses.fields(Outer)[0].default is dataclasses.MISSING


def test_values_of_a_wrong_type_in_a_config_file_are_named(config):
    assert type_problems(config) == []
    sampling = dataclasses.replace(config.recipe.sampling, temperature="1e-3", stop="x")
    recipe = dataclasses.replace(config.recipe, sampling=sampling, limit=2.5)
    wrong = type_problems(dataclasses.replace(config, recipe=recipe))
    assert wrong == [
        "recipe.limit is 2.5 (float), but must be int | None",
        'recipe.sampling.temperature is "1e-3" (str), but must be float. '
        "Meaning: Divides the logits.",
        'recipe.sampling.stop is "x" (str), but must be tuple[str, ...]. '
        "Meaning: Texts that end a sample.",
    ]
