"""Makes a small Hugging Face directory: a random Qwen2 and a tokenizer for GSM8K.

    pip install torch transformers tokenizers
    python tests/real/make_model.py DIR train.jsonl

The tokenizer is a byte-level BPE trained on the questions and answers of the file. The
model has never seen anything; two layers, width 128, about 0.6 M parameters, float32.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

TOKENS = 2000
EOS = "<|endoftext|>"


def train_tokenizer(rows: list[dict]) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of `TOKENS` tokens, the end of text among them."""
    bpe = ByteLevelBPETokenizer()
    texts = [row[name] for row in rows for name in ("question", "answer")]
    bpe.train_from_iterator(
        texts, vocab_size=TOKENS, special_tokens=[EOS], show_progress=False
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=EOS, pad_token=EOS
    )


def random_model(tokenizer) -> transformers.Qwen2ForCausalLM:
    config = transformers.Qwen2Config(
        # Wider than the tokenizer, as real checkpoints are: the rest must not be drawn.
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config)


def main(directory: Path, train: Path) -> None:
    rows = [json.loads(line) for line in train.open(encoding="utf-8")]
    tokenizer = train_tokenizer(rows)
    model = random_model(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    print(f"{directory}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
