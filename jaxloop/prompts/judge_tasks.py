"""What a judge is trained on: requests to judge pairs whose better completion is known.

Nobody need have labelled anything: the worse completion may be the answer to a slightly
different question (Self-Taught Evaluators, Wang et al. 2024, arXiv 2408.02666) or one
with a wrong result (J1, arXiv 2505.10320).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.jsonl import DataError
from jaxloop.prompts.requests import request_ids, reserved
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Pair, Prompt

BETTER = 0  # the place of the better completion among the two of a pair
ORDERS = [(0, 1), (1, 0)]
EACH = [(0,), (1,)]


class Asks(Protocol):
    """What tasks take from a judge (`jaxloop.scoring.Judge`): how it sees a completion,
    what it is shown together, and the words in which it is asked."""

    @property
    def sees(self) -> Callable[[str], str | None]: ...

    @property
    def show(self) -> Callable[[int], list[tuple[int, ...]]]: ...

    def request(
        self, prompt: Prompt, texts: Sequence[str], special: Collection[str] = ()
    ) -> str: ...


@dataclass(frozen=True)
class JudgeTasks:
    """Requests to judge the pairs of two data sets, in the very words in which `judge`
    asks, so that what is trained is what is used.

    A judge that is shown `both_orders` gives two prompts a pair; their column `label`
    is the better completion's letter, "A" or "B". One that is shown `each` gives two as
    well; their column `better` is true for the better completion. Both prompts of a
    pair have its id in the column `pair`; the columns of the pair's own prompt stay.
    """

    train: Any
    """Where the pairs to train on come from (`load(tokenizer)` gives a Dataset), and
    demonstrations, where there is a supervised stage."""
    test: Any
    """Where the held-out pairs come from."""
    judge: Asks
    """Who is asked; its sampling and parser play no part here."""
    max_prompt_tokens: int = 4096
    """Pairs whose requests are longer are left out, in both orders, and counted."""

    def __post_init__(self):
        if self.judge.show(2) not in (ORDERS, EACH):
            raise ValueError(
                "JudgeTasks: its judge is shown a pair as "
                f"{self.judge.show(2)}; it must be shown both orders, or each by itself"
            )

    def missing(self, *, train: bool, test: bool, demonstrations: bool) -> list[str]:
        """One sentence for each file that is needed but not given."""
        wanted = [
            ("train.pairs", train, "pairs to judge"),
            ("test.pairs", test, "held-out pairs"),
            ("train.demonstrations", demonstrations, "what the `sft` stage imitates"),
        ]
        return [
            f"data.{name} is empty: give data.{name}=FILE, {what}"
            for name, needed, what in wanted
            if needed and not _given(self, name)
        ]

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """Reads both sources. DataError where no pair is left, or where a question
        of the held-out pairs is trained on."""
        train = self.train.load(tokenizer) if _given(self, "train.pairs") else Dataset()
        test = self.test.load(tokenizer) if _given(self, "test.pairs") else Dataset()
        _check_apart(train.pairs, test.pairs)
        notes = [*train.notes, *test.notes]
        return Dataset(
            train=self._prompts("train", train.pairs, tokenizer, notes),
            test=self._prompts("test", test.pairs, tokenizer, notes),
            demonstrations=train.demonstrations,
            notes=notes,
        )

    def _prompts(
        self, split: str, pairs: Sequence[Pair], tokenizer: Tokenizer, notes: list[str]
    ) -> list[Prompt]:
        asked = [requests(pair, self.judge, tokenizer) for pair in pairs]
        most = self.max_prompt_tokens
        kept = [each for each in asked if each and max(map(_length, each)) <= most]
        if len(kept) < len(pairs):
            found = (
                f"data.{split}: {len(pairs) - len(kept)} of {len(pairs)} pairs have "
                f"requests of more than data.max_prompt_tokens={most} tokens, or "
                "nothing that the judge sees"
            )
            if not kept:
                raise DataError(f"{found}, and none is left; raise it")
            notes.append(f"{found}: left out")
        return [prompt for each in kept for prompt in each]


def requests(pair: Pair, judge: Asks, tokenizer: Tokenizer) -> list[Prompt]:
    """The two requests to judge a pair; none where the judge sees nothing of a
    completion."""
    texts = [judge.sees(side.text) for side in (pair.chosen, pair.rejected)]
    prompts, special = [], reserved(tokenizer)
    for places in judge.show(2):
        shown = [text for place in places if (text := texts[place]) is not None]
        if len(shown) < len(places):
            return []
        text = judge.request(pair.prompt, shown, special)
        known: dict[str, Any] = {"pair": pair.prompt.id}
        if len(places) == 1:
            known["better"] = places == (BETTER,)
        else:
            known["label"] = "AB"[places.index(BETTER)]
        columns = dict(pair.prompt.columns) | known
        name = f"{pair.prompt.id}:{'-'.join(map(str, places))}"
        prompts.append(Prompt(name, text, request_ids(tokenizer, text), columns))
    return prompts


def _length(prompt: Prompt) -> int:
    return len(prompt.token_ids)


def _given(tasks: JudgeTasks, name: str) -> bool:
    """Whether a source has its file, as far as it is one of files."""
    split, field = name.split(".")
    return getattr(getattr(tasks, split), field, True) != ""


def _check_apart(train: Sequence[Pair], test: Sequence[Pair]) -> None:
    learned = {pair.prompt.text for pair in train}
    both = [pair.prompt for pair in test if pair.prompt.text in learned]
    if both:
        raise DataError(
            f"data.test: {len(both)} of {len(test)} held-out pairs have a question "
            f"that is trained on, the first is {both[0].id} ({both[0].text[:80]!r}); "
            "take them out of one of the files"
        )
