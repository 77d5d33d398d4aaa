"""One scorer for each kind of prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxloop.records import Prompt, Scored
from jaxloop.scoring import scorer as scorers
from jaxloop.scoring.parts import named
from jaxloop.scoring.scorer import Groups, Models, OfModels, Scorer


@dataclass(frozen=True)
class Routed:
    """Prompts whose row's field `by` is a name among `routes` go to the scorer beside
    it, all others to `otherwise`.

    For mixtures: problems that a verifier checks among instructions that a judge
    scores (Lanchantin et al. 2025, arXiv 2506.21495), or answers among judgements.
    """

    routes: tuple[tuple[str, Scorer], ...]
    otherwise: Scorer
    by: str = "set"

    def __post_init__(self):
        known: dict[str, OfModels] = {}
        for scorer in self._scorers():
            for name, part in named(scorer).items():
                if known.setdefault(name, part) != part:
                    raise ValueError(
                        f"Routed: different judges call their scores {name!r}: give "
                        "each a `name` of its own, or metrics mix them"
                    )

    def check(self, prompts: Sequence[Prompt]) -> None:
        for scorer, places in self._parts(prompts):
            scorers.check(scorer, [prompts[place] for place in places])

    def close(self) -> None:
        for scorer in self._scorers():
            scorers.close(scorer)

    def with_models(self, models: Models) -> "Routed":
        bound = tuple((name, scorers.bind(each, models)) for name, each in self.routes)
        return replace(
            self, routes=bound, otherwise=scorers.bind(self.otherwise, models)
        )

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        scored: dict[int, Scored] = {}
        for scorer, places in self._parts(prompts):
            rows = scorer([prompts[i] for i in places], [rollouts[i] for i in places])
            scored |= dict(zip(places, rows, strict=True))
        return [scored[place] for place in range(len(prompts))]

    def _scorers(self) -> list[Scorer]:
        return [self.otherwise, *(scorer for _, scorer in self.routes)]

    def _parts(self, prompts: Sequence[Prompt]) -> list[tuple[Scorer, list[int]]]:
        """Each scorer that has prompts, and their places."""
        names = [str(prompt.columns.get(self.by, "")) for prompt in prompts]
        known = {name for name, _ in self.routes}
        parts = [
            (scorer, [place for place, found in enumerate(names) if found == name])
            for name, scorer in self.routes
        ]
        rest = [place for place, found in enumerate(names) if found not in known]
        return [(s, places) for s, places in [*parts, (self.otherwise, rest)] if places]
