"""The work that is timed, the same for jaxloop and for its peers.

Standard library only: every peer imports this from its own environment.
"""

import json
import os
import statistics
import time
from collections.abc import Callable

# A 39M-parameter Qwen2-shaped model, tied embeddings, float32.
VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 32_000, 512, 8, 8, 2, 64, 1_408
THREADS = 2

# Sampling at temperature 1 from the whole vocabulary; nothing stops early.
SAMPLE_PROMPTS, SAMPLE_PROMPT_TOKENS, SAMPLE_NEW_TOKENS = 32, 64, 128
# A DPO step: pairs of prompt + completion, the reference model and AdamW included.
DPO_PAIRS, DPO_PROMPT_TOKENS, DPO_COMPLETION_TOKENS = 4, 128, 128
# A GRPO step without KL term: sampling, one update with AdamW.
GRPO_PROMPTS, GRPO_SAMPLES, GRPO_PROMPT_TOKENS, GRPO_NEW_TOKENS = 2, 8, 64, 128

WARM_UP, TIMED = 2, 3
"""Runs before timing (compilation, caches) and timed runs; the median is reported."""


def use_two_cores() -> None:
    """All are timed on as many threads. Call it before jax or torch computes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def token_ids(rows: int, length: int, seed: int) -> list[list[int]]:
    """Arbitrary ids that are no special token of any tokenizer used here."""

    def token(row: int, column: int) -> int:
        return 10 + (7919 * row + 104_729 * column) % (VOCAB - 20)

    return [[token(seed + r, c) for c in range(length)] for r in range(rows)]


def seconds(run: Callable[[], object]) -> list[float]:
    """Wall-clock seconds of the timed runs of `run`, which must wait for its result."""
    times = []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[WARM_UP:]


class Stamps:
    """For trainers that own their loop: `stamp()` once a step, then `seconds()`."""

    def __init__(self):
        self.at: list[float] = []

    def stamp(self) -> None:
        self.at.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of the last TIMED intervals between stamps."""
        gaps = [
            after - before for before, after in zip(self.at, self.at[1:], strict=False)
        ]
        assert len(gaps) >= WARM_UP + TIMED, f"only {len(gaps)} steps were seen"
        return gaps[-TIMED:]


def report(name: str, versions: dict, sampling=(), dpo=(), grpo=()) -> None:
    """Prints one JSON line; None for what was not run."""
    tokens = SAMPLE_PROMPTS * SAMPLE_NEW_TOKENS
    median = statistics.median
    line = {
        "name": name,
        "versions": versions,
        "sampling_tokens_per_s": tokens / median(sampling) if sampling else None,
        "dpo_step_s": median(dpo) if dpo else None,
        "grpo_step_s": median(grpo) if grpo else None,
        "all_s": {"sampling": list(sampling), "dpo": list(dpo), "grpo": list(grpo)},
    }
    print(json.dumps(line), flush=True)
