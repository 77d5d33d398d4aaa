"""Times TRL on the shapes of workload.py; prints one JSON line.

Run by benchmarks/run.py --peer trl in an environment of its own (see peers.py). Set for
speed on a CPU where TRL's defaults are for large models: float32 without recomputation.
"""

# pyright: reportMissingImports=false

import argparse
import contextlib
import sys
import tempfile
from importlib.metadata import version

import torch
import workload as w
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

PAD, EOS = 0, 1


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of numbers: "12 7" is the tokens 12 and 7."""
    words = {str(i): i for i in range(w.VOCAB)}
    words = {"<pad>": PAD, "<eos>": EOS} | {k: i for k, i in words.items() if i > EOS}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    )


def make_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=w.VOCAB,
        hidden_size=w.WIDTH,
        intermediate_size=w.FFN,
        num_hidden_layers=w.LAYERS,
        num_attention_heads=w.HEADS,
        num_key_value_heads=w.KV_HEADS,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def texts(rows: int, length: int, seed: int) -> list[str]:
    return [" ".join(map(str, ids)) for ids in w.token_ids(rows, length, seed)]


class Steps(TrainerCallback):
    """Stamps the end of every optimiser step."""

    def __init__(self, stamps: w.Stamps):
        self.stamps = stamps

    def on_train_begin(self, *_, **__):
        self.stamps.stamp()

    def on_step_end(self, *_, **__):
        self.stamps.stamp()


def common(folder: str, rows: int) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "max_steps": w.WARM_UP + w.TIMED,
        "learning_rate": 1e-6,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1000,
    }


def time_sampling(_: str) -> list[float]:
    model = make_model().eval()
    prompts = w.token_ids(w.SAMPLE_PROMPTS, w.SAMPLE_PROMPT_TOKENS, 0)
    ids = torch.tensor(prompts)

    @torch.no_grad()
    def run():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            min_new_tokens=w.SAMPLE_NEW_TOKENS,
            max_new_tokens=w.SAMPLE_NEW_TOKENS,
        )
        assert out.shape[1] == w.SAMPLE_PROMPT_TOKENS + w.SAMPLE_NEW_TOKENS

    return w.seconds(run)


def time_dpo(folder: str) -> list[float]:
    stamps = w.Stamps()
    rows = w.DPO_PAIRS * (w.WARM_UP + w.TIMED)
    # The end-of-sequence token that TRL appends would stick to the last number.
    new = w.DPO_COMPLETION_TOKENS - 1
    data = Dataset.from_dict(
        {
            "prompt": texts(rows, w.DPO_PROMPT_TOKENS, 0),
            "chosen": [f" {text} <eos>" for text in texts(rows, new, 1000)],
            "rejected": [f" {text} <eos>" for text in texts(rows, new, 2000)],
        }
    )
    trainer = DPOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=DPOConfig(**common(folder, w.DPO_PAIRS), beta=0.1, max_length=None),
        train_dataset=data,
        processing_class=make_tokenizer(),
        callbacks=[Steps(stamps)],
    )
    batch = next(iter(trainer.get_train_dataloader()))
    length = w.DPO_PROMPT_TOKENS + w.DPO_COMPLETION_TOKENS
    assert batch["input_ids"].shape == (2 * w.DPO_PAIRS, length)
    trainer.train()
    return stamps.seconds()


def time_grpo(folder: str) -> list[float]:
    stamps = w.Stamps()
    rows = w.GRPO_PROMPTS * (w.WARM_UP + w.TIMED)

    def reward(completion_ids, **_):
        assert len(completion_ids) == w.GRPO_PROMPTS * w.GRPO_SAMPLES
        assert all(len(ids) == w.GRPO_NEW_TOKENS for ids in completion_ids)
        return [float(sum(ids) % 7) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=make_model(),
        reward_funcs=reward,
        args=GRPOConfig(
            **common(folder, w.GRPO_PROMPTS * w.GRPO_SAMPLES),
            num_generations=w.GRPO_SAMPLES,
            max_completion_length=w.GRPO_NEW_TOKENS,
            temperature=1.0,
            top_k=0,
            beta=0.0,
            generation_kwargs={"min_new_tokens": w.GRPO_NEW_TOKENS},
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": texts(rows, w.GRPO_PROMPT_TOKENS, 0)}
        ),
        processing_class=make_tokenizer(),
        callbacks=[Steps(stamps)],
    )
    trainer.train()
    return stamps.seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="sampling,dpo,grpo")
    wanted = parser.parse_args().only.split(",")
    w.use_two_cores()
    torch.set_num_threads(w.THREADS)
    timers = {"sampling": time_sampling, "dpo": time_dpo, "grpo": time_grpo}
    # Trainers print; the last line of standard output is ours alone.
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(sys.stderr),
    ):
        found = {name: timers[name](folder) for name in wanted}
    names = ("trl", "transformers", "torch")
    w.report("trl", {name: version(name) for name in names}, **found)


if __name__ == "__main__":
    main()
