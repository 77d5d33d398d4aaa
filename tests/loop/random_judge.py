"""A small random model in Hugging Face form that can read and write any text."""

from collections.abc import Iterable
from pathlib import Path

import transformers
from tokenizers import ByteLevelBPETokenizer

from jaxloop.loop.workbench import new_params
from jaxloop.mesh import make_mesh
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.models.export import save_model
from jaxloop.prompts.tokenizer import load_tokenizer

END = "<|endoftext|>"


def save(directory: Path, texts: Iterable[str], *, positions: int = 4096) -> Path:
    """The directory, with a byte-level BPE of `texts`."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=512, special_tokens=[END], show_progress=False
    )
    beside = directory.with_name(directory.name + "-tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END
    ).save_pretrained(beside)
    shape = ModelShape(
        vocab=512, width=16, ffn=32, layers=1, heads=2, kv_heads=2, head_dim=8,
        max_positions=positions,
    )  # fmt: skip
    params = new_params(Decoder(shape), make_mesh(), 0, "float32")
    save_model(directory, shape, params, load_tokenizer(str(beside)))
    return directory
