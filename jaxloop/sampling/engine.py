"""Prompts in, rollouts out: the engine keeps the decode rows busy.

Prompts are padded to a few lengths (buckets); each bucket has one compiled prefill,
insert and decode. A prompt is prefilled once and copied to a row for each of its
samples; rows that end make room for waiting samples every `chunk` steps, at the price
of one fetch from the device. What all prompts begin with (a judge's instructions) can
be run through the model once for all of them.
"""

import hashlib
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloop.distributed import fetch
from jaxloop.mesh import batch_parts
from jaxloop.models.decode import DecodeWeights
from jaxloop.models.decoder import Cache, Decoder, ModelShape
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt, Rollout
from jaxloop.sampling import decode
from jaxloop.sampling.harvest import Harvester, Table, Task
from jaxloop.sampling.settings import Sampling

Progress = Callable[[int, int, int], None]
HEAD_BLOCK = 32
"""A shared head is of whole blocks of so many tokens: few shapes, as with buckets."""


class Engine:
    """Samples from one model; what it compiled is kept between calls.

    `compiled` counts compilations by function: in steady state it does not change.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, mesh: Mesh):
        self.model = model
        self.tokenizer = tokenizer
        self.mesh = mesh
        # Rows of the embedding beyond the tokenizer are padding: never drawn.
        self.size = min(tokenizer.size, model.shape.vocab)
        self.compiled: Counter[str] = Counter()
        self._weights: tuple[list[weakref.ref], DecodeWeights] | None = None
        self._prepare = self._jit(decode.prepare, static=(0, 1))
        self._empty = self._jit(decode.empty_state, static=(0, 1, 2))
        self._prefill = self._jit(decode.prefill, static=(0,))
        self._prefill_head = self._jit(decode.prefill_head, static=(0,))
        self._prefill_rest = self._jit(decode.prefill_rest, static=(0,))
        self._insert = self._jit(decode.insert, donate=(0,))
        self._decode = self._jit(decode.decode, static=(0, 1, 2, 3), donate=(5,))

    def _jit(self, function, static=(), donate=()):
        def traced(*args):
            self.compiled[function.__name__] += 1  # runs only while it is traced
            return function(*args)

        return jax.jit(traced, static_argnums=static, donate_argnums=donate)

    def sample(
        self,
        params: dict,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        key: jax.Array,
        shared: int = 0,
        version: int = 0,
        on_progress: Progress | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """`sampling.n` rollouts of each prompt, in the order of the prompts.

        key: a JAX random key. shared: so many tokens at their beginning are the same in
        all prompts (`common_head`), and run through the model once. version: written
        into the rollouts. on_progress: called with (finished samples, all samples,
        tokens so far) after every chunk.
        ValueError, before anything compiles, for what cannot be sampled;
        FloatingPointError for a model whose logits are not finite.
        """
        watch = None if on_progress is None else _Watch(on_progress)
        return self._sample(params, prompts, sampling, key, version, watch, shared)

    def stream(
        self,
        params: dict,
        prompt: Prompt,
        sampling: Sampling,
        *,
        key: jax.Array,
        on_text: Callable[[str], None],
        version: int = 0,
    ) -> Rollout:
        """One sample of a prompt; `on_text` gets the text so far after every chunk."""
        parts = batch_parts(self.mesh)
        sampling = replace(sampling, n=1, rows=parts, prefill_rows=parts)

        def watch(harvester: Harvester, table: Table, done: list, total: int):
            for row in np.flatnonzero(table.rows.live_B).tolist():
                on_text(harvester.text_so_far(table, row))
            for _, rollout in done:
                on_text(rollout.text)

        return self._sample(params, [prompt], sampling, key, version, watch)[0][0]

    def release(self) -> None:
        """Frees the copy of the parameters that the last call decoded with; without
        this the next call with the same parameters uses it again."""
        self._weights = None

    def _prepared(self, params: dict) -> DecodeWeights:
        leaves = jax.tree.leaves(params)
        if self._weights is not None:
            known, weights = self._weights
            if all(a() is b for a, b in zip(known, leaves, strict=True)):
                return weights
        self._weights = None  # before the new copy is made
        weights = self._prepare(self.model, self.size, params)
        self._weights = ([weakref.ref(leaf) for leaf in leaves], weights)
        return weights

    def _sample(self, params, prompts, sampling, key, version, watch, shared=0):
        problems = self.problems(prompts, sampling)
        if shared > common_head(prompts):
            problems.append(f"the prompts do not share their first {shared} tokens")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        harvester = Harvester(
            self.tokenizer.decode,
            sampling.stop,
            sampling.max_new_tokens,
            prompts,
            version,
        )
        rollouts: list[list[Rollout | None]] = [[None] * sampling.n for _ in prompts]
        total = len(prompts) * sampling.n
        with jax.set_mesh(self.mesh):
            weights = self._prepared(params) if prompts else None
            key = _threefry(key)
            head = self._head(params, prompts, shared)
            for bucket, members in _by_bucket(prompts, sampling, shared).items():
                own = [(place, prompts[place]) for place in members]
                run = _Run(self, params, weights, own, sampling, bucket, head)
                for table, done in run.chunks(harvester, key):
                    for task, rollout in done:
                        rollouts[task.prompt][task.index] = rollout
                    if watch is not None:
                        watch(harvester, table, done, total)
        return [tuple(r for r in row if r is not None) for row in rollouts]

    def _head(self, params: dict, prompts: Sequence[Prompt], shared: int):
        """The cache of what all prompts begin with; None of nothing."""
        if not shared:
            return None
        ids = prompts[0].token_ids[:shared]
        tokens_PE = np.tile(np.array(ids, np.int32), (batch_parts(self.mesh), 1))
        return self._prefill_head(self.model, params, tokens_PE)

    def empty_state(self, sampling: Sampling, bucket: int) -> decode.DecodeState:
        """The decode rows of one bucket, all free, as they lie on the mesh."""
        with jax.set_mesh(self.mesh):
            return self._empty(self.model, sampling.rows, sampling.slots(bucket))

    def room(self, sampling: Sampling) -> int:
        """Tokens of the longest prompt that can be sampled: the model's positions less
        the completion, and no more than the longest of `prompt_buckets`."""
        most = self.model.shape.max_positions - sampling.max_new_tokens
        return min(most, max(sampling.prompt_buckets, default=most))

    def problems(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
        """Why these prompts cannot be sampled, one sentence each."""
        found = []
        parts = batch_parts(self.mesh)
        if sampling.rows % parts:
            fits = sampling.rows // parts * parts
            fits = f"{fits} or {fits + parts}" if fits else f"{parts}"
            found.append(
                f"rows = {sampling.rows} cannot be cut into the mesh's {parts} batch "
                f"parts (data x fsdp): nearest that fit: {fits}"
            )
        twice = [id for id, n in Counter(p.id for p in prompts).items() if n > 1]
        if twice:
            found.append(
                f"{len(twice)} prompt ids come more than once (the first: "
                f"{twice[0]!r}); the id seeds the draws, so it must be unique"
            )
        empty = [p.id for p in prompts if not p.token_ids]
        if empty:
            found.append(f"prompt {empty[0]!r} has no tokens")
        limit = self.model.shape.max_positions
        room = limit - sampling.max_new_tokens
        long = [p for p in prompts if len(p.token_ids) > room]
        if long:
            worst = max(long, key=lambda p: len(p.token_ids))
            found.append(
                f"{len(long)} prompts leave no room for max_new_tokens = "
                f"{sampling.max_new_tokens} in the model's {limit} positions (the "
                f"longest, {worst.id!r}, has {len(worst.token_ids)} tokens): lower "
                f"max_new_tokens or drop prompts longer than {max(room, 0)} tokens"
            )
        wrong = [
            p for p in prompts if max(p.token_ids, default=0) >= self.model.shape.vocab
        ]
        if wrong:
            found.append(
                f"prompt {wrong[0].id!r} has token {max(wrong[0].token_ids)}, but the "
                f"model knows {self.model.shape.vocab}: is this the model's tokenizer?"
            )
        return found


class _Watch:
    """Counts for `on_progress`."""

    def __init__(self, on_progress: Progress):
        self.on_progress = on_progress
        self.rows = self.tokens = 0

    def __call__(self, harvester: Harvester, table: Table, done: list, total: int):
        self.rows += len(done)
        self.tokens += sum(len(rollout.token_ids) for _, rollout in done)
        running = int(table.rows.made_B.sum())
        self.on_progress(self.rows, total, self.tokens + running)


class _Run:
    """All prompts of one bucket, from first prefill to last token."""

    def __init__(self, engine, params, weights, prompts, sampling, bucket, head):
        self.engine: Engine = engine
        self.params, self.weights = params, weights
        self.prompts: list[tuple[int, Prompt]] = prompts
        self.sampling: Sampling = sampling
        self.bucket: int = bucket
        self.head: Cache | None = head
        self.waiting: deque[tuple[Task, decode.Prefilled, int]] = deque()
        self.batches = self._prefilled_batches()

    def chunks(self, harvester: Harvester, key) -> Iterator:
        """(table, [(task, rollout)]) after every chunk, until all is done."""
        engine, sampling = self.engine, self.sampling
        whole_chunks = -(-sampling.max_new_tokens // sampling.chunk) * sampling.chunk
        table = Table.empty(sampling.rows, whole_chunks)
        state = engine.empty_state(sampling, self.bucket)
        run_chunk = partial(
            engine._decode, engine.model, _drawing(sampling), engine.size,
            engine.tokenizer.eos_ids, self.weights,
        )  # fmt: skip
        while True:
            state = self._fill(table, state)
            if not table.rows.live_B.any():
                return
            state, chunk = run_chunk(state, table.rows, key)
            yield table, harvester.harvest(table, fetch(chunk))

    def _fill(self, table: Table, state: decode.DecodeState):
        """Seats waiting samples in the free rows, prefilling where none is ready."""
        rows = self.sampling.rows
        moves: dict[int, tuple[decode.Prefilled, list[tuple[int, int]]]] = {}
        for row in table.free_rows():
            if not self.waiting:
                self.waiting.extend(next(self.batches, ()))
            if not self.waiting:
                break
            task, prefilled, source = self.waiting.popleft()
            table.seat(row, task)
            moves.setdefault(id(prefilled), (prefilled, []))[1].append((source, row))
        for prefilled, pairs in moves.values():
            padded = np.zeros((2, rows), np.int32)
            padded[:, : len(pairs)] = np.array(pairs, np.int32).T
            count = np.int32(len(pairs))
            state = self.engine._insert(state, prefilled, padded[0], padded[1], count)
        return state

    def _prefilled_batches(self):
        """Prefills on demand; gives each batch's samples, a prompt's together."""
        engine, sampling = self.engine, self.sampling
        P = sampling.padded_prefill_rows(batch_parts(engine.mesh))
        first = 0 if self.head is None else self.head.k.shape[3]
        for start in range(0, len(self.prompts), P):
            batch = self.prompts[start : start + P]
            tokens_PT = np.full((P, self.bucket), engine.tokenizer.pad_id, np.int32)
            length_P = np.full(P, first + 1, np.int32)
            for i, (_, prompt) in enumerate(batch):
                length_P[i] = len(prompt.token_ids)
                tokens_PT[i, : length_P[i]] = prompt.token_ids
            of = (engine.model, self.params)
            if self.head is None:
                prefilled = engine._prefill(*of, tokens_PT, length_P)
            else:
                rest_PU = tokens_PT[:, first:]
                prefilled = engine._prefill_rest(*of, self.head, rest_PU, length_P)
            yield [
                (Task(place, index, _stable_hash(p.id), len(p.token_ids)), prefilled, i)
                for i, (place, p) in enumerate(batch)
                for index in range(sampling.n)
            ]


def cache_bytes(
    shape: ModelShape, sampling: Sampling, longest_prompt: int, dtype, parts: int = 1
) -> int:
    """Bytes a device holds for keys and values while sampling.

    The decode rows and one prefilled batch, at the bucket of `longest_prompt` tokens.
    `parts`: into how many the mesh cuts the cache (batch parts times tensor).
    """
    bucket = sampling.bucket(longest_prompt)
    decoding = sampling.rows * sampling.slots(bucket)
    waiting = sampling.prefill_rows * bucket
    a_slot = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return (decoding + waiting) * a_slot * jnp.dtype(dtype).itemsize // parts


def common_head(prompts: Sequence[Prompt]) -> int:
    """How many first tokens all prompts have in common, in whole blocks; each keeps one
    token at least, and a single prompt shares with nobody."""
    if len(prompts) < 2:
        return 0
    ids = [prompt.token_ids for prompt in prompts]
    low, high = min(ids), max(ids)  # in the order of words: all others lie between
    most = min(map(len, ids)) - 1
    same = next((i for i in range(most) if low[i] != high[i]), most)
    return max(same, 0) // HEAD_BLOCK * HEAD_BLOCK


def _by_bucket(
    prompts: Sequence[Prompt], sampling: Sampling, shared: int
) -> dict[int, list[int]]:
    """Places of the prompts of each bucket, shortest bucket first. What follows a
    shared head is padded by itself, where that is less."""
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        length = len(prompt.token_ids)
        whole = sampling.bucket(length)
        if shared:
            whole = min(whole, shared + sampling.bucket(length - shared))
        groups.setdefault(whole, []).append(place)
    return dict(sorted(groups.items()))


def _drawing(sampling: Sampling) -> Sampling:
    """Only what the compiled decode loop depends on: the rest recompiles nothing."""
    default = Sampling()
    return replace(
        sampling,
        n=default.n,
        stop=(),
        prompt_buckets=(),
        rows=default.rows,
        prefill_rows=default.prefill_rows,
    )


def _stable_hash(name: str) -> int:
    """32 bits, the same in every process."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _threefry(key: jax.Array) -> jax.Array:
    """A key whose draws do not depend on how they are batched: other generators' do."""
    bits = jax.random.bits(key, (2,), jnp.uint32)
    return jax.random.wrap_key_data(bits, impl="threefry2x32")
