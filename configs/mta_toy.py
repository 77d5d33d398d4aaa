"""Multi-Token Attention's block-finding task (Golovneva et al. 2025, arXiv 2504.00927).

A row of blocks of five random letters, a query of two; the answer is the block that
holds both. Plain attention has to bring both letters of a block into one key before it
can match them; the key-query convolution sees neighbouring tokens at once.

    jaxloop run configs/mta_toy.py                               Multi-Token Attention
    jaxloop run configs/mta_toy.py model.shape.mta=none out=...  the same, plain
    jaxloop run configs/mta_toy.py:tiny                          on a CPU, in minutes
    jaxloop run configs/mta_toy.py seed=43 data.asked=first ...

The error is 1 - `eval/accuracy`. The paper reports its mean over seeds 42, 43, 44: 51.6
% plain and 0.1 % with Multi-Token Attention, by seed 77.7, 75.3, 1.9 and 0, 0, 0.2 (the
authors' README, H100). Full size is about two billion tokens: for an accelerator.

The tiny variant asks the same of less: eight blocks of three letters, two layers of
width 64, 2 x 5 taps, 5,000 updates of 32 sequences; under three minutes a run on one
CPU core. Error in %, by seed:

    seed                              42     43     44     mean
    plain                             96.1   98.0   92.2   95.4
    with Multi-Token Attention        13.3    2.7    1.0    5.7

From the authors' code: data, sizes, 2 x 9 taps before the softmax in every layer, no
mixing of heads, optimiser, 100,000 updates of 64 sequences. Ours: no dropout (theirs is
0.1), whole blocks only, and everything of the tiny variant.
"""

from dataclasses import replace

from jaxloop.config import unknown_variant
from jaxloop.experiment import Characters, Config, Model
from jaxloop.loop.recipe import Evaluation, SupervisedStage
from jaxloop.models.decoder import ModelShape
from jaxloop.models.mta import MtaShape
from jaxloop.prompts.blocks import Blocks
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import Exact
from jaxloop.training.optimizer import Optimizer

WORLD = Blocks()
MTA = MtaShape(
    query_taps=2,
    key_taps=9,
    every=1,
    first=0,
    after=False,
    mix_before=False,
    mix_after=False,
)
SHAPE = ModelShape(
    family="llama",
    vocab=32,
    width=256,
    ffn=768,
    layers=4,
    heads=2,
    kv_heads=2,
    head_dim=128,
    rope_base=100_000.0,
    qkv_bias=False,
    mta=MTA,
)


def get_config(variant: str | None = None) -> Config:
    if variant not in (None, "tiny"):
        raise unknown_variant(variant, ["tiny"])
    config = Config(
        name="mta_toy",
        model=Model(shape=SHAPE),
        tokenizer=Characters(WORLD.alphabet),
        data=WORLD,
        sft=SupervisedStage(
            steps=100_000,
            batch_size=64,
            row_tokens=320,
            optimizer=Optimizer(learning_rate=1e-4, warmup=1000, b2=0.98),
        ),
        evaluation=Evaluation(
            scorer=Exact(),
            sampling=Sampling(n=1, temperature=0.0, max_new_tokens=6, rows=256),
            every=5_000,
        ),
        seed=42,
    )
    return tiny(config) if variant == "tiny" else config


def tiny(config: Config) -> Config:
    """Eight blocks of three letters, two layers of width 64."""
    assert config.sft is not None
    world = Blocks(letters=3, blocks=8, test=512, demonstrations=40_000)
    mta = replace(MTA, key_taps=5)
    shape = replace(SHAPE, width=64, ffn=160, layers=2, head_dim=32, mta=mta)
    optimizer = replace(
        config.sft.optimizer,
        learning_rate=1.5e-3,
        warmup=100,
        schedule="linear",
        final_fraction=0.1,
    )
    return replace(
        config,
        name="mta_toy-tiny",
        model=Model(shape=shape, dtype="float32", remat="none"),
        data=world,
        sft=replace(
            config.sft,
            steps=5000,
            batch_size=32,
            row_tokens=world.prompt_tokens + world.completion_tokens,
            optimizer=optimizer,
        ),
        evaluation=replace(config.evaluation, every=0),
    )
