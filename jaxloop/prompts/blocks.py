"""The block-finding task of Multi-Token Attention (Golovneva et al. 2025, 2504.00927).

A prompt is a row of blocks of random letters and a query of a few letters,
`dklsr.gpamq.rmzxt#ap`; the answer is the one block that holds all letters of the query
(`gpamq`). A block must match on several of its tokens at once, in whatever order the
query names them, which single-token attention finds hard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from jaxloop.prompts import demonstrations
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Prompt

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = LETTERS + ".#"
CHUNK = 2048
"""Problems drawn at once, which bounds the memory of drawing."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of `letters` different letters each, `blocks` of them, one of which holds
    all `query` letters asked for. Every prompt has the same length."""

    letters: int = 5
    """Letters of a block (the paper's N)."""
    query: int = 2
    """Letters of a query (the paper's L)."""
    blocks: int = 52
    """52 blocks of 5 make the sequence length that the authors trained with: 321
    tokens with answer, beginning and end."""
    asked: Literal["all", "first", "last"] = "all"
    """Whether the answer is the block, its first or its last letter."""
    test: int = 1000
    """Held-out prompts."""
    demonstrations: int = 1_000_000
    """Prompts with their answers, to be trained on."""
    seed: int = 0
    """Same seed, same problems."""

    def __post_init__(self):
        if not 0 < self.query <= self.letters <= len(LETTERS) or self.blocks < 1:
            raise ValueError(
                f"Blocks: query = {self.query} letters of a block of {self.letters}, "
                f"blocks = {self.blocks}: a query has between 1 and all letters of a "
                f"block, a block at most {len(LETTERS)}, and there is one at least"
            )
        if self.blocks > 1 and self.query == self.letters == len(LETTERS):
            raise ValueError("Blocks: every block would hold the query")

    @property
    def alphabet(self) -> str:
        """All characters of prompts and answers."""
        return ALPHABET

    @property
    def prompt_tokens(self) -> int:
        return self.blocks * (self.letters + 1) + self.query

    @property
    def completion_tokens(self) -> int:
        """Tokens of an answer, its end included."""
        return (self.letters if self.asked == "all" else 1) + 1

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """The problems as records; the test prompts' column is `answer`. ValueError for
        a tokenizer that has not one token a character."""
        problems = self._problems(np.random.default_rng(self.seed))
        test = [next(problems) for _ in range(self.test)]
        return Dataset(
            train=[],
            test=[
                Prompt(
                    id=f"test:{i}",
                    text=text,
                    token_ids=tokenizer.encode_prompt(text),
                    columns={"answer": answer},
                )
                for i, (text, answer) in enumerate(test)
            ],
            demonstrations=self._demonstrations(problems, tokenizer),
        )

    def _problems(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """(prompt, answer) without end."""
        letters, size = np.frombuffer(LETTERS.encode(), np.uint8), self.letters + 1
        while True:
            block_PSN, query_PQ, place_P = self._draw(rng)
            text_PT = np.full((CHUNK, self.prompt_tokens), ord("."), np.uint8)
            text_PT[:, -self.query :] = letters[query_PQ]
            text_PT[:, -self.query - 1] = ord("#")
            parts = text_PT[:, : -self.query].reshape(CHUNK, self.blocks, size)
            parts[..., :-1] = letters[block_PSN]  # a view, not a copy
            for text_T, place in zip(text_PT, place_P.tolist(), strict=True):
                text = text_T.tobytes().decode()
                yield text, self._answer(text[place * size : place * size + size - 1])

    def _draw(self, rng: np.random.Generator):
        """Letters of the blocks (P, S, N) and of the queries (P, Q), and which block of
        each problem holds its query (P,); P problems, S blocks."""
        block_PSN = _different(rng, (CHUNK, self.blocks), self.letters)
        place_P = rng.integers(self.blocks, size=CHUNK)
        target_PN = block_PSN[np.arange(CHUNK), place_P]
        asked_PQ = _different(rng, (CHUNK,), self.query, among=self.letters)
        query_PQ = np.take_along_axis(target_PN, asked_PQ, axis=1)
        other_PS = np.arange(self.blocks) != place_P[:, None]
        while True:
            held_PSQ = (block_PSN[..., None] == query_PQ[:, None, None]).any(axis=2)
            again_PS = held_PSQ.all(axis=-1) & other_PS
            if not again_PS.any():
                return block_PSN, query_PQ, place_P
            count = int(again_PS.sum())
            block_PSN[again_PS] = _different(rng, (count,), self.letters)

    def _answer(self, block: str) -> str:
        return {"all": block, "first": block[0], "last": block[-1]}[self.asked]

    def _demonstrations(self, problems, tokenizer: Tokenizer) -> list[Demonstration]:
        ids = _ids(tokenizer)
        return [
            demonstrations.from_completion(
                f"demonstration:{i}",
                (*tokenizer.bos_ids, *map(ids.__getitem__, text)),
                [ids[letter] for letter in answer],
                tokenizer,
            )
            for i, (text, answer) in enumerate(islice(problems, self.demonstrations))
        ]


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The token of each character: a million texts are looked up in seconds."""
    ids = [tokenizer.encode(letter) for letter in ALPHABET]
    if [(token,) for token in tokenizer.encode(ALPHABET)] != ids:
        raise ValueError("data: Blocks wants a tokenizer with one token a character")
    return {letter: own[0] for letter, own in zip(ALPHABET, ids, strict=True)}


def _different(rng, size: tuple[int, ...], count: int, among: int = len(LETTERS)):
    """(*size, count) integers below `among`, those of the last axis all different."""
    return rng.random((*size, among)).argsort(axis=-1)[..., :count]
