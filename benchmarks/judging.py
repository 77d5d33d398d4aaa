"""What judging costs: a round of Self-Rewarding, and ways to judge k times.

    python benchmarks/judging.py [--smoke]

A 39M-parameter model on this machine's CPU (`--smoke`: a tiny one, in seconds). Prints

- seconds in sampling, judging and training of the second round of a run of
  `jaxloop run` (the first one compiles): each answer is judged k times from a request
  of template, question and answer;
- seconds to judge as many requests k times, and what other ways cost in the same run:
  k passes of one judgement each, and requests that are prefilled whole instead of
  behind the template's beginning, which all have in common.

Ratios are of the work alone: taking turns, median of three after one that compiles. k
judgements of a request take one prefill, and k times as many rows decode at once; the
common beginning takes one prefill for all requests. How much that is depends on the
lengths: beginnings are long and verdicts short where a judge may not think aloud. A
question that several answers share is read once an answer; only what all requests begin
with is kept.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import workload as w


@dataclass(frozen=True)
class Size:
    """Lengths in tokens, which are words here."""

    width: int = w.WIDTH
    layers: int = w.LAYERS
    heads: int = w.HEADS
    kv_heads: int = w.KV_HEADS
    ffn: int = w.FFN
    vocab: int = w.VOCAB
    prompts: int = 8
    question: int = 32
    samples: int = 4
    answer: int = 64
    head: int = 160
    """The template, before the question."""
    judgements: int = 3
    verdict: int = 32


SMOKE = Size(
    width=32, layers=2, heads=4, kv_heads=2, ffn=64, vocab=256, prompts=4, answer=16
)


def words(count: int, vocab: int, seed: int = 0) -> str:
    (ids,) = w.token_ids(1, count, seed)
    return " ".join(f"w{i % (vocab - 2)}" for i in ids)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A token for each of the words w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", *(f"w{i}" for i in range(vocab - 2))]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)


@dataclass(frozen=True)
class Words:
    """Questions without a meaning."""

    size: Size

    def load(self, tokenizer):
        from jaxloop.prompts.dataset import Dataset
        from jaxloop.records import Demonstration, Prompt

        texts = [
            words(self.size.question, self.size.vocab, seed=i)
            for i in range(2 * self.size.prompts)
        ]
        prompts = [
            Prompt(f"p{i}", text, tokenizer.encode(text))
            for i, text in enumerate(texts)
        ]
        ids = prompts[0].token_ids
        shown = Demonstration("d0", ids, (0, *(1,) * (len(ids) - 1)))
        return Dataset(train=prompts, test=[], demonstrations=[shown])


def any_number(text: str, shown: int) -> tuple[float, ...]:
    """A verdict in whatever a model without training writes."""
    return (float(zlib.crc32(text.encode()) % 6),)


def shape_of(size: Size):
    from jaxloop.models.decoder import ModelShape

    return ModelShape(
        vocab=size.vocab,
        width=size.width,
        ffn=size.ffn,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.kv_heads,
        head_dim=size.width // size.heads,
    )


def config_of(size: Size, folder: Path):
    from jaxloop.experiment import Config, Model, ModelTokenizer
    from jaxloop.loop.recipe import Recipe, Rounds, SupervisedStage
    from jaxloop.losses.objectives import Pairwise
    from jaxloop.sampling.settings import Sampling
    from jaxloop.scoring import Judge
    from jaxloop.selection import BestWorst

    drawn = size.prompts * size.samples
    judge = Judge(
        template=f"{words(size.head, size.vocab)} {{question}} {{answer}}",
        parse=any_number,
        sampling=Sampling(
            size.judgements, max_new_tokens=size.verdict, rows=drawn * size.judgements
        ),
        guarded=False,
    )
    recipe = Recipe(
        Sampling(size.samples, max_new_tokens=size.answer, rows=drawn),
        judge,
        Pairwise(beta=0.1),
        Rounds(2, prompts=size.prompts, batch_size=4),
        selector=BestWorst(),
    )
    return Config(
        name="judging",
        model=Model(shape=shape_of(size), dtype="float32", remat="none"),
        data=Words(size),
        tokenizer=ModelTokenizer(str(folder / "tokenizer")),
        sft=SupervisedStage(steps=1, batch_size=1, row_tokens=size.question),
        recipe=recipe,
        tensorboard=False,
        out=str(folder / "out"),
    )


def time_round(size: Size) -> dict[str, float]:
    """Seconds of a round's stations, none of them compiling."""
    from jaxloop.loop.run import run
    from jaxloop.metrics import read_metrics

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer", size.vocab)
        assert run(config_of(size, folder)) == 0
        lines = read_metrics(folder / "out" / "metrics.jsonl")
    last = [line for line in lines if line["round"] == 1]
    (scored,) = (line for line in last if line["phase"] == "round")
    ended = max(line["time"] for line in last if line["phase"] == "train")
    return {
        "sampling": scored["timing_s/gen"],
        "judging": scored["timing_s/score"],
        "training": ended - scored["time"],
    }


@dataclass(frozen=True)
class NoText:
    """A tokenizer for ids that mean nothing: no text, no end of sequence."""

    size: int
    pad_id: int = 0
    eos_ids: tuple[int, ...] = ()

    def decode(self, ids) -> str:
        return ""


def time_judging(size: Size) -> dict[str, float]:
    """Seconds to judge a round's answers, in several ways."""
    import jax
    import jax.numpy as jnp

    from jaxloop.loop.workbench import new_params
    from jaxloop.mesh import MeshShape, make_mesh
    from jaxloop.models.decoder import Decoder
    from jaxloop.records import Prompt
    from jaxloop.sampling.engine import Engine, common_head
    from jaxloop.sampling.settings import Sampling

    model = Decoder(shape_of(size), jnp.dtype("float32"))
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    engine = Engine(model, NoText(size.vocab), mesh)  # pyright: ignore[reportArgumentType]
    params = new_params(model, mesh, 0, "float32")
    k, count = size.judgements, size.prompts * size.samples
    own = w.token_ids(count, size.question + size.answer, seed=1)
    (head,) = w.token_ids(1, size.head, seed=0)

    def requests(call: int) -> list[Prompt]:
        every = [tuple(i % size.vocab for i in [*head, *ids]) for ids in own]
        return [Prompt(f"{call}:{i}", "", ids) for i, ids in enumerate(every)]

    def judged(n: int, passes: int, *, shared: bool) -> Callable[[], None]:
        settings = Sampling(n, max_new_tokens=size.verdict, rows=n * count)

        def once():
            for call in range(passes):
                asked = requests(call)
                same = common_head(asked) if shared else 0
                engine.sample(
                    params, asked, settings, key=jax.random.key(0), shared=same
                )

        return once

    return taking_turns(
        {
            f"{k} judgements a request": judged(k, 1, shared=True),
            "the same, prefilled whole": judged(k, 1, shared=False),
            f"{k} passes of one judgement": judged(1, k, shared=True),
            f"{k} passes, prefilled whole": judged(1, k, shared=False),
        }
    )


def taking_turns(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each; in turn, so that a busy machine is as busy for all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + w.TIMED):
        for name, once in ways.items():
            began = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model")
    size = SMOKE if parser.parse_args().smoke else Size()
    os.environ["JAX_PLATFORMS"] = "cpu"
    w.use_two_cores()
    stations, ways = time_round(size), time_judging(size)
    whole, ours = sum(stations.values()), next(iter(ways.values()))
    print(f"\n{'a round of Self-Rewarding':<32}{'s':>8}{'share':>8}")
    for name, seconds in stations.items():
        print(f"{name:<32}{seconds:>8.2f}{seconds / whole:>8.0%}")
    print(f"\n{'judging a round of answers':<32}{'s':>8}{'ratio':>8}")
    for name, seconds in ways.items():
        print(f"{name:<32}{seconds:>8.2f}{seconds / ours:>7.2f}x")
    print(json.dumps({"round_s": stations, "judging_s": ways}))


if __name__ == "__main__":
    main()
