"""The host's side of decoding: which row holds which sample, and what it has drawn.

Shapes: B decode rows, N the longest completion in whole chunks, C steps of a chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxloop.records import Prompt, Rollout, Stop
from jaxloop.sampling.decode import Chunk, Rows


@dataclass(frozen=True)
class Task:
    """A sample to draw."""

    prompt: int
    """Place of the prompt in the caller's list."""
    index: int
    """Which of the prompt's samples."""
    prompt_key: int
    length: int
    """Tokens of the prompt."""


@dataclass(frozen=True)
class Table:
    """One row of every array is one decode row; changed in place."""

    rows: Rows
    task_B: list[Task | None]
    token_BN: np.ndarray
    logp_BN: np.ndarray
    drawn_logp_BN: np.ndarray

    @staticmethod
    def empty(rows: int, longest: int) -> "Table":
        def zeros(dtype, *more) -> Any:
            return np.zeros((rows, *more), dtype)

        return Table(
            Rows(
                prompt_key_B=zeros(np.uint32),
                sample_B=zeros(np.uint32),
                length_B=zeros(np.int32),
                made_B=zeros(np.int32),
                live_B=zeros(bool),
            ),
            task_B=[None] * rows,
            token_BN=zeros(np.int32, longest),
            logp_BN=zeros(np.float32, longest),
            drawn_logp_BN=zeros(np.float32, longest),
        )

    def free_rows(self) -> list[int]:
        return np.flatnonzero(~self.rows.live_B).tolist()

    def seat(self, row: int, task: Task) -> None:
        """Gives a free row to a task; its prompt must be inserted on the device."""
        self.task_B[row] = task
        self.rows.prompt_key_B[row] = task.prompt_key
        self.rows.sample_B[row] = task.index
        self.rows.length_B[row] = task.length
        self.rows.made_B[row] = 0
        self.rows.live_B[row] = True

    def leave(self, row: int) -> None:
        self.task_B[row] = None
        self.rows.live_B[row] = False
        self.rows.length_B[row] = 0  # what a free row writes must stay in its slots
        self.rows.made_B[row] = 0


@dataclass(frozen=True)
class Harvester:
    """Turns what chunks drew into rollouts."""

    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens left out."""
    stops: tuple[str, ...]
    max_new_tokens: int
    prompts: Sequence[Prompt]
    version: int
    overlap: int = field(init=False)
    """How many earlier tokens a stop string may reach back to."""

    def __post_init__(self):
        longest = max((len(stop.encode()) for stop in self.stops), default=0)
        # A token has a byte at least; a few more, as decoding trims at the front.
        object.__setattr__(self, "overlap", longest + 4)

    def harvest(self, table: Table, chunk: Chunk) -> list[tuple[Task, Rollout]]:
        """Adds a chunk (numpy arrays) to the table; ends the rows that are done.

        FloatingPointError where the model gave no finite probabilities.
        """
        rows = table.rows
        live = np.flatnonzero(rows.live_B)
        self._check_finite(table, chunk)
        made = rows.made_B[live]
        into = (live[:, None], made[:, None] + np.arange(len(chunk.token_CB)))
        table.token_BN[into] = chunk.token_CB.T[live]
        table.logp_BN[into] = chunk.logp_CB.T[live]
        table.drawn_logp_BN[into] = chunk.drawn_logp_CB.T[live]
        rows.made_B[live] += chunk.count_B[live]
        rows.length_B[live] += chunk.count_B[live]

        done = []
        full = chunk.eos_B | (rows.made_B >= self.max_new_tokens)
        for row, before in zip(live.tolist(), made.tolist(), strict=True):
            stopped = self._first_stop(table, row, before) if self.stops else None
            if stopped is None and not full[row]:
                continue
            task = table.task_B[row]
            assert task is not None
            eos = bool(chunk.eos_B[row])
            done.append((task, self._rollout(table, row, task, eos, stopped)))
            table.leave(row)
        return done

    def text_so_far(self, table: Table, row: int) -> str:
        return self.decode(table.token_BN[row, : table.rows.made_B[row]].tolist())

    def _check_finite(self, table: Table, chunk: Chunk) -> None:
        counted_CB = np.arange(len(chunk.token_CB))[:, None] < chunk.count_B
        finite_CB = np.isfinite(chunk.logp_CB) & np.isfinite(chunk.drawn_logp_CB)
        wrong_B = (counted_CB & ~finite_CB).any(axis=0) & table.rows.live_B
        if wrong_B.any():
            task = table.task_B[int(wrong_B.argmax())]
            assert task is not None
            raise FloatingPointError(
                "sampling: the model's logits for prompt "
                f"{self.prompts[task.prompt].id!r} are not finite: parameters hold nan "
                "or infinity, or the dtype is too narrow"
            )

    def _first_stop(self, table: Table, row: int, before: int):
        """(tokens, text) up to the end of the first stop string, None without one.

        Earlier chunks had none: tokens up to `before` need no second look.
        """
        ids = table.token_BN[row, : table.rows.made_B[row]].tolist()
        tail = self.decode(ids[max(0, before - self.overlap) :])
        if not any(stop in tail for stop in self.stops):
            return None
        for count in range(before + 1, len(ids) + 1):
            text = self.decode(ids[:count])
            ends = [text.find(stop) + len(stop) for stop in self.stops if stop in text]
            if ends:
                return count, text[: min(ends)]
        return None

    def _rollout(self, table: Table, row: int, task: Task, eos: bool, stopped):
        count, stop = int(table.rows.made_B[row]), "eos" if eos else "length"
        text = None
        if stopped is not None:
            (count, text), stop = stopped, "stop"
        ids = table.token_BN[row, :count].tolist()
        logps = table.logp_BN[row, :count].tolist()
        drawn_logps = table.drawn_logp_BN[row, :count].tolist()
        if text is None:
            text = self.decode(ids[:-1] if eos else ids)
        reason: Stop = stop  # pyright: ignore[reportAssignmentType]
        return Rollout(
            prompt_id=self.prompts[task.prompt].id,
            index=task.index,
            token_ids=tuple(ids),
            text=text,
            logps=tuple(logps),
            drawn_logps=tuple(drawn_logps),
            stop=reason,
            version=self.version,
        )
