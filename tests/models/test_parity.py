"""Against live transformers models: their checkpoints in, our directories out.

Runs with transformers 4.4x as well as 5. Needs torch; `./launch/test.sh --parity`.
"""

import numpy as np
import pytest

from jaxloop.models.decoder import Decoder, head_outputs
from jaxloop.models.export import save_model
from jaxloop.models.huggingface import read_shape

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": [62, 63],
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 96,
}
CASES = {
    "llama": ("LlamaConfig", {}),
    "llama-everything": (
        "LlamaConfig",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": LLAMA3,
            "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5,
        },
    ),
    "llama-one-kv-head": ("LlamaConfig", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "rope_theta": 5e5}),
    "qwen2": ("Qwen2Config", {"rope_theta": 1e6}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-long": ("Qwen2Config", {"rope_scaling": LLAMA3}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "rope_theta": 1e6}),
    "qwen3-biased-tied": (
        "Qwen3Config",
        {"head_dim": 10, "attention_bias": True, "tie_word_embeddings": True},
    ),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="parity tests need torch")


def live_model(torch, case: str, seed: int):
    """A float32 model in which every parameter matters."""
    import transformers

    kind, options = CASES[case]
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    config = getattr(transformers, kind)(**SIZES | options)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[1] ** -0.5
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape))
    return model.eval()


def logits_by_torch(torch, model, tokens_BT) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).logits.float().numpy()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_in_and_out_again(torch, case, seed, load, logits_of, make_tokenizer, tmp_path):
    import transformers

    model = live_model(torch, case, seed)
    model.save_pretrained(tmp_path / "theirs")
    tokens_BT = np.random.default_rng(seed).integers(0, 97, (2, 100))
    expected = logits_by_torch(torch, model, tokens_BT)

    shape, params = read_shape(tmp_path / "theirs"), load(tmp_path / "theirs")
    actual = logits_of(shape, params, tokens_BT)
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)

    save_model(
        tmp_path / "ours",
        shape,
        params,
        make_tokenizer(),
        shard_bytes=60_000,
        generation={"eos_token_id": 61},
    )
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert back.generation_config.eos_token_id == [62, 63, 61]
    assert next(back.parameters()).dtype == torch.float32
    theirs, ours = model.state_dict(), back.state_dict()
    assert set(theirs) == set(ours)
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]), name
    again = logits_by_torch(torch, back.eval(), tokens_BT)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("case", ["llama", "qwen2-tied", "qwen3"])
def test_classifiers_in_and_out_again(torch, case, load, make_tokenizer, tmp_path):
    import transformers

    kind, options = CASES[case]
    config = getattr(transformers, kind)(**SIZES | options, num_labels=3)
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    tokens_BT = np.random.default_rng(0).integers(1, 97, (2, 20))
    expected_BK = logits_by_torch(torch, model, tokens_BT)  # of the last token

    shape, params = read_shape(tmp_path / "theirs"), load(tmp_path / "theirs")
    assert (shape.outputs, shape.tied) == (3, True)
    positions_BT = np.broadcast_to(np.arange(20), (2, 20))
    hidden_BTD, _ = Decoder(shape).apply({"params": params}, tokens_BT, positions_BT)
    actual_BTK = head_outputs(params, hidden_BTD)
    np.testing.assert_allclose(actual_BTK[:, -1], expected_BK, atol=1e-5, rtol=0)

    save_model(tmp_path / "ours", shape, params, make_tokenizer())
    back, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    again_BK = logits_by_torch(torch, back.eval(), tokens_BT)
    np.testing.assert_array_equal(again_BK, expected_BK)


@pytest.mark.parametrize("case", ["llama-everything", "qwen3"])
def test_bfloat16_stays_bfloat16(torch, case, load, make_tokenizer, tmp_path):
    import transformers

    model = live_model(torch, case, 0).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    shape = read_shape(tmp_path / "theirs")
    params = load(tmp_path / "theirs", "bfloat16")
    save_model(tmp_path / "ours", shape, params, make_tokenizer())
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", torch_dtype="auto"
    )
    for name, tensor in model.state_dict().items():
        other = back.state_dict()[name]
        assert other.dtype == torch.bfloat16
        assert torch.equal(tensor, other), name
