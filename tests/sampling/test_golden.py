"""Greedy continuations equal those of transformers, token for token."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxloop.models.decoder import Decoder
from jaxloop.models.huggingface import load_params, read_shape
from jaxloop.records import Prompt
from jaxloop.sampling.engine import Engine
from jaxloop.sampling.settings import Sampling
from tests.sampling.tiny import Letters

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("llama_biases", "llama_tied", "qwen2_tied", "qwen2_untied", "qwen3")


@pytest.mark.parametrize("name", NAMES)
def test_greedy(name, mesh_of):
    mesh, directory = mesh_of(), GOLDEN / name
    model = Decoder(read_shape(directory))
    with np.load(directory / "expected.npz") as file:
        expected = {key: file[key] for key in file.files}
    prompts = [
        Prompt(f"p{i}", "", tuple(ids[:length].tolist()))
        for i, (ids, length) in enumerate(
            zip(
                expected["greedy_prompt"],
                expected["greedy_prompt_length"],
                strict=True,
            )
        )
    ]
    tokens = expected["greedy_tokens"]
    letters = replace(
        Letters(), size=model.shape.vocab, eos_ids=(62, 63), alphabet="x" * 64
    )
    sampling = Sampling(
        n=1, temperature=0.0, max_new_tokens=tokens.shape[1], rows=2, chunk=16
    )
    params = load_params(directory, model.shape, mesh)
    rollouts = Engine(model, letters, mesh).sample(
        params, prompts, sampling, key=jax.random.key(0)
    )
    for (rollout,), want in zip(rollouts, tokens, strict=True):
        assert rollout.token_ids == tuple(want.tolist())
        assert rollout.stop == "length"
