"""Makes the tiny Hugging Face checkpoints of this folder, and what they compute.

    pip install torch transformers
    python tests/golden/make_models.py [NAME ...]

README.md says what is in the files. Everything is drawn from fixed seeds. All
parameters are random, norms and biases too, and large enough that attention is not
uniform: then a wrong transpose, bias, norm or rotation changes the logits by far more
than the tolerance.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parent
EOS_IDS = (62, 63)
NEW_TOKENS = 32
PROMPT_LENGTHS = (9, 5, 1)
SMALLEST_MARGIN = 0.02
"""Between the two best logits of a greedy step: rounding must not decide a token."""

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": list(EOS_IDS),
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
MODELS = {
    "llama_biases": transformers.LlamaConfig(
        **SIZES, rope_parameters=LLAMA3_ROPE, attention_bias=True, mlp_bias=True
    ),
    "llama_tied": transformers.LlamaConfig(
        **SIZES, rope_parameters=PLAIN_ROPE, tie_word_embeddings=True
    ),
    "qwen2_tied": transformers.Qwen2Config(
        **SIZES, rope_parameters=PLAIN_ROPE, tie_word_embeddings=True
    ),
    "qwen2_untied": transformers.Qwen2Config(**SIZES, rope_parameters=PLAIN_ROPE),
    # Heads that do not make up the width: 4 * 12 against 32.
    "qwen3": transformers.Qwen3Config(**SIZES, rope_parameters=PLAIN_ROPE, head_dim=12),
}
BFLOAT16 = ("qwen2_tied", "llama_tied")
"""Stored in bfloat16; their logits are those of the same numbers in float32."""


def random_model(config, seed: int, dtype) -> torch.nn.Module:
    """A model in float32 whose numbers are exact in `dtype`."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = 1 + 0.3 * noise
            elif parameter.ndim == 1:
                value = 0.5 * noise
            else:
                value = 1.5 * parameter.shape[1] ** -0.5 * noise
            parameter.copy_(value.to(dtype).float())
    return model.eval()


@torch.no_grad()
def greedy(model, prompt: np.ndarray) -> tuple[list[int], float]:
    """Tokens by the full forward pass each time, and the smallest margin seen."""
    ids, margin = torch.tensor(prompt, dtype=torch.long)[None], np.inf
    for _ in range(NEW_TOKENS):
        best = model(ids).logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids = torch.cat([ids, best.indices[None, :1]], dim=1)
    return ids[0, len(prompt) :].tolist(), margin


def expected(model, seed: int) -> dict[str, np.ndarray] | None:
    """The arrays of expected.npz; None if a greedy step is close or ends the text."""
    rng = np.random.default_rng(seed)
    tokens_BT = rng.integers(0, 62, (2, 24))
    prompts, continuations = [], []
    for length in PROMPT_LENGTHS:
        prompt = rng.integers(0, 62, length)
        continuation, margin = greedy(model, prompt)
        if margin < SMALLEST_MARGIN or set(continuation) & set(EOS_IDS):
            return None
        if len(set(continuation)) < 6:  # stuck on few tokens: a weak test
            return None
        prompts.append(np.pad(prompt, (0, max(PROMPT_LENGTHS) - length)))
        continuations.append(continuation)
    with torch.no_grad():
        logits_BTV = model(torch.tensor(tokens_BT)).logits.numpy()
    return {
        "tokens": tokens_BT.astype(np.int32),
        "logits": logits_BTV.astype(np.float32),
        "greedy_prompt": np.array(prompts, np.int32),
        "greedy_prompt_length": np.array(PROMPT_LENGTHS, np.int32),
        "greedy_tokens": np.array(continuations, np.int32),
    }


def make(name: str) -> None:
    dtype = torch.bfloat16 if name in BFLOAT16 else torch.float32
    for seed in range(1000):
        model = random_model(MODELS[name], seed, dtype)
        arrays = expected(model, seed)
        if arrays is not None:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear greedy choices")
    model.to(dtype).save_pretrained(ROOT / name)
    np.savez_compressed(ROOT / name / "expected.npz", **arrays)
    print(f"{name}: seed {seed}")


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        make(name)
