"""Scores from a function of the user's own, run in processes with a deadline a call.

With this in a file,

    def short(prompt, completion, answer, **columns):
        return float(answer in completion) - 0.001 * len(completion)

`Function(short, deadline=2.0)` is a scorer.
"""

import inspect
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring.pool import Pool, Reply, Target
from jaxloop.scoring.scorer import column

CANCEL_GRACE = 0.5  # seconds an async function has to end after its cancellation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Function:
    """`fn(prompt, completion, **columns) -> float | None`, sync or async.

    `fn` gets the two texts and the row's columns: all of them if it has `**columns`,
    else those that it names. It must stand at the top level of a file: worker processes
    import that file anew, so the file should be quick to import.

    None leaves the rollout unscored. NaN and infinities, exceptions and missed
    deadlines leave it unscored too, as "nan", "error" and "timeout"; they are never a
    score of 0. A late call is killed with its process. The first failure is logged with
    its traceback. Async calls run `at_once` at a time in each worker.

    deadline: seconds a call may take. workers: processes, started when first needed and
    kept. name: of the component in the metrics, the function's own where empty.
    """

    fn: Callable[..., Any]
    deadline: float = 5.0
    workers: int = 2
    at_once: int = 32
    name: str = ""

    def __post_init__(self):
        qualname = getattr(self.fn, "__qualname__", repr(self.fn))
        file = getattr(inspect.unwrap(self.fn), "__globals__", {}).get("__file__")
        if "<" in qualname or file is None:
            raise ValueError(
                f"Function: {qualname!r} is not at the top level of a file, where "
                "worker processes could import it; lambdas, nested functions and "
                "partials do not work: write a def in a file"
            )
        for name, least in (("deadline", 0.001), ("workers", 1), ("at_once", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"Function: {name}={value} must be at least {least}")

    def __getstate__(self):  # copies have the settings, not the running processes
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Loads the function in a worker (PoolError with the traceback if that fails)
        and sees that every row has the columns that it needs (ValueError)."""
        for prompt in prompts:
            self._columns(prompt)
        self._pool.start()

    def close(self) -> None:
        """Ends the worker processes; a later call starts new ones."""
        self._pool.close()

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        calls = []
        for prompt, group in zip(prompts, rollouts, strict=True):
            columns = self._columns(prompt)
            calls += [
                {"prompt": prompt.text, "completion": r.text, "columns": columns}
                for r in group
            ]
        replies = iter(self._pool.run(calls))
        scored = []
        for prompt, group in zip(prompts, rollouts, strict=True):
            scores = tuple(self._score(r, next(replies)) for r in group)
            scored.append(Scored(prompt, group, scores))
        return scored

    @cached_property
    def _pool(self) -> Pool:
        fn = inspect.unwrap(self.fn)
        path = os.path.abspath(fn.__globals__["__file__"])
        target = Target(fn.__module__, path, self.fn.__qualname__)
        concurrent = inspect.iscoroutinefunction(self.fn)
        return Pool(
            target,
            deadline=self.deadline,
            grace=CANCEL_GRACE if concurrent else 0.0,
            workers=self.workers,
            at_once=self.at_once if concurrent else 1,
        )

    @cached_property
    def _told(self) -> set[str]:
        """The kinds of failure that were logged."""
        return set()

    @cached_property
    def _parameters(self) -> tuple[bool, dict[str, bool]]:
        """Whether all columns are taken, and those named: name -> is it required."""
        parameters = list(inspect.signature(self.fn).parameters.values())[2:]
        every = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = {
            p.name: p.default is p.empty
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        return every, named

    def _columns(self, prompt: Prompt) -> dict[str, Any]:
        every, named = self._parameters
        for name, required in named.items():
            if required and name not in prompt.columns:
                column(prompt, name)
        given = {
            name: value
            for name, value in prompt.columns.items()
            if name in named or (every and name not in ("prompt", "completion"))
        }
        try:
            json.dumps(given)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"row {prompt.id!r}: a column is not a JSON value and cannot be passed "
                f"to {self.fn.__qualname__!r}: {error}"
            ) from None
        return given

    def _score(self, rollout: Rollout, reply: Reply) -> Score:
        if reply.error:
            self._log_first(rollout, reply)
        name = self.name or self.fn.__name__
        known = {} if reply.value is None else {name: reply.value}
        return Score(reply.value, reply.status, components=known)

    def _log_first(self, rollout: Rollout, reply: Reply) -> None:
        """One failure of each kind is told in full; the metrics count them all."""
        if reply.status in self._told:
            return
        self._told.add(reply.status)
        log.warning(
            "scoring function %r: %s on row %r, sample %d (the first; others are "
            "counted only):\n%s",
            self.fn.__qualname__,
            reply.status,
            rollout.prompt_id,
            rollout.index,
            reply.error,
        )
