import pytest

from jaxloop.config import ConfigError, apply_overrides, nearest_names


def problems_of(config, *items, **more):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(config, items, **more)
    return caught.value.problems


@pytest.mark.parametrize(
    "items",
    [
        ["recipe.sampling.temperature=0.5"],
        ["--recipe.sampling.temperature", "0.5"],
        ["--recipe.sampling.temperature=0.5"],
        ["recipe.sampling.temperature=3", "--recipe.sampling.temperature", ".5"],
    ],
    ids=str,
)
def test_three_spellings_and_the_last_one_wins(config, items):
    changed = apply_overrides(config, items)
    assert changed.recipe.sampling.temperature == 0.5
    assert config.recipe.sampling.temperature == 1.0
    assert changed.recipe.filters is config.recipe.filters  # untouched parts are shared


def test_negative_numbers_and_equals_signs_are_values(config):
    changed = apply_overrides(config, ["--seed", "-1", "recipe.api_key=a=b"])
    assert changed.seed == -1
    assert changed.recipe.api_key == "a=b"


def test_elements_of_tuples_are_addressed_by_index(config):
    items = ["recipe.filters.1.minimum=0.5", "recipe.sizes.0=7"]
    changed = apply_overrides(config, items)
    assert [f.minimum for f in changed.recipe.filters] == [0.0, 0.5]
    assert changed.recipe.sizes == (7, 2)


def test_a_whole_tuple_then_an_element_of_it(config):
    changed = apply_overrides(
        config, ["recipe.sampling.stop=a,b", "recipe.sampling.stop.1=c"]
    )
    assert changed.recipe.sampling.stop == ("a", "c")


def test_a_tuple_of_parts_can_be_emptied_only(config):
    assert apply_overrides(config, ["recipe.filters=()"]).recipe.filters == ()
    (problem,) = problems_of(config, "recipe.filters=1")
    assert "recipe.filters.0, recipe.filters.1" in problem


def test_optional_scalars_take_none(config):
    changed = apply_overrides(config, ["recipe.limit=5"])
    assert changed.recipe.limit == 5
    assert apply_overrides(changed, ["recipe.limit=none"]).recipe.limit is None


def test_all_problems_come_in_one_message(config):
    items = [
        "recipe.sampling.temprature=1",
        "seed=x",
        "recipe.loss=math.exp",
        "recipe.scaling.factor=2",
        "recipe.scaling=2",
        "recipe.optimizer=adm",
        "recipe.filters.5.minimum=1",
        "recipe.sizes.4=1",
        "recipe=1",
        "loose",
        "--seed",
    ]
    problems = problems_of(config, *items)
    assert len(problems) == len(items)
    text = str(ConfigError(problems))
    for expected in [
        "11 problems:",
        "unknown field recipe.sampling.temprature; "
        "did you mean recipe.sampling.temperature?",
        "seed=x: not a whole number (type int)",
        "recipe.loss holds math:sqrt, which cannot be written on the command line",
        "Meaning: What is minimised.",
        "recipe.scaling is None; set it in the config file",
        "a Scaling cannot be written",
        "did you mean adam?",
        "unknown field recipe.filters.5.minimum; did you mean recipe.filters.0.minimum",
        "recipe.sizes.4: there is no element 4, it has 2 elements: (1, 2)",
        "recipe is a part (Recipe), not a value",
        "'loose' is not an override: write name=value",
        "--seed needs a value",
    ]:
        assert expected in text, expected


def test_what_a_part_refuses_names_the_part_and_sees_all_its_changes(config):
    (problem,) = problems_of(config, "recipe.filters.0.minimum=2")
    assert problem == "recipe.filters.0: minimum 2.0 > maximum 1.0"
    both = ["recipe.filters.0.minimum=2", "recipe.filters.0.maximum=3"]
    assert apply_overrides(config, both).recipe.filters[0].maximum == 3.0


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("temperature", "recipe.sampling.temperature"),
        ("sampling.temperature", "recipe.sampling.temperature"),
        ("recipe.smapling.temperatur", "recipe.sampling.temperature"),
        ("recipe.sampling.max_tokens", "recipe.sampling.max_new_tokens"),
        ("sede", "seed"),
        ("dry-runs", "--dry-run"),
    ],
)
def test_unknown_names_find_the_nearest(config, wrong, right):
    (problem,) = problems_of(config, f"{wrong}=1", flags=["--dry-run"])
    assert f"did you mean {right}" in problem


def test_names_like_nothing_get_the_list(config):
    (problem,) = problems_of(config, "zzz=1")
    assert problem == "unknown field zzz; Config has recipe, seed"


def test_the_same_name_elsewhere_comes_before_a_like_path():
    names = ["a.sampling.rows", "a.sampling.n", "b.temperature"]
    assert nearest_names("a.sampling.temperature", names)[0] == "b.temperature"


def test_a_secret_that_does_not_fit_is_not_echoed(config):
    changed = apply_overrides(config, ["recipe.api_key=hush"])
    assert changed.recipe.api_key == "hush"
    (problem,) = problems_of(config, "seed=hf_abcdefghijklmnopqrstuvwxyz")
    assert "abcdefgh" not in problem
