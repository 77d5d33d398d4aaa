"""Which parts of a recipe go together: what the objective trains on, and what the
others make."""

from jaxloop.loop.recipe import Online, Recipe, produces
from jaxloop.scoring.previous import looks_back


def kind_problems(recipe: Recipe) -> list[str]:
    """What the objective trains on, against what the other parts make."""
    kind, made = recipe.objective.trains_on, produces(recipe.selector)
    schedule, found = recipe.schedule, []
    online = isinstance(schedule, Online)
    if recipe.weighting is not None and kind != "pairs":
        found.append("`weighting` belongs to objectives of pairs only")
    if recipe.advantage is not None and kind != "groups":
        found.append("`advantage` belongs to policy objectives only")
    if kind == "groups":
        advantage = "advantage" in recipe.objective.needs
        tokenwise = hasattr(recipe.advantage, "of_tokens")
        if recipe.selector is not None or (advantage and recipe.advantage is None):
            found.append("a policy objective wants `advantage`, no `selector`")
        if not online:
            found.append("a policy objective wants the Online schedule")
        found += _value_problems(recipe)
        if advantage and not tokenwise and recipe.sampling.n < 2:
            found.append("recipe.sampling.n: a group needs at least 2 samples")
        if advantage and recipe.sampling.temperature == 0:
            found.append(
                "recipe.sampling.temperature=0 makes all samples of a group equal"
            )
        pair = getattr(recipe.advantage, "pair", "")
        if pair and online and schedule.together != pair:
            found.append(
                f"{type(recipe.advantage).__name__} wants both prompts of a pair in "
                f"one step: set recipe.schedule.together={pair}"
            )
        if getattr(recipe.objective, "whole_groups", False) and online:
            prompts, parts = schedule.prompts, schedule.accumulation
            if prompts % parts:
                found.append(
                    f"recipe.schedule.accumulation = {parts} cuts through groups, "
                    "which this objective wants whole: let it divide "
                    f"recipe.schedule.prompts = {prompts}"
                )
    elif recipe.selector is None or made != kind:
        names = {"pairs": "a pairwise", "demonstrations": "a supervised"}
        wanted = "labelled completions" if kind == "labelled" else kind
        given = "there is none"
        if recipe.selector is not None:
            given = f"{type(recipe.selector).__name__} makes {made}"
        found.append(
            f"{names.get(kind, 'this')} objective wants a selector of {wanted}; {given}"
        )
    if online and looks_back(recipe.scorer):
        found.append(
            "only rounds have a model before: WithPrevious wants the Rounds schedule"
        )
    if kind == "demonstrations" and online:
        found.append("a supervised objective wants the Rounds schedule")
    if recipe.extra is not None and (
        online or not getattr(recipe.selector, "spares_extra", False)
    ):
        found.append(
            "recipe.extra samples are only ever rejected: they want the Rounds "
            "schedule and a selector that heeds that (VoteClusters, CorrectIncorrect)"
        )
    return found


def _value_problems(recipe: Recipe) -> list[str]:
    """PPO's two halves, advantages by token and a value to take them from."""
    needs, advantage = recipe.objective.needs, recipe.advantage
    if hasattr(advantage, "of_tokens") != ("head" in needs):
        return [
            "an advantage by token (GAE) and an objective with a value (Value) go "
            "together, as in Mixture((Policy(), Value()), (1.0, 0.5))"
        ]
    if getattr(advantage, "kl", 0) and "reference" not in needs:
        return ["GAE with kl > 0 wants an objective with a reference: Policy(kl=...)"]
    return []
