"""Tokenizers made on the spot, and where the real data files are."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxloop.prompts.tokenizer import Tokenizer, character_tokenizer, load_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def data_file():
    """data_file("gsm8k/train.jsonl"): its path; the test is skipped without it."""

    def find(name: str) -> Path:
        if not (DATA / name).is_file():
            pytest.skip(f"the data file {name} is not here")
        return DATA / name

    return find


@pytest.fixture
def write_jsonl(tmp_path):
    """write_jsonl([{...}, ...]): the path of a new file with these rows."""

    def write(rows, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="session")
def bpe_directory(tmp_path_factory) -> Path:
    """A byte-level BPE tokenizer as a Hugging Face directory, with a BOS of its own."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "<|im_start|>", "<|im_end|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the user and the assistant say hello"] * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    directory = tmp_path_factory.mktemp("bpe")
    backend.enable_truncation(4)  # some published files carry one
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": {
            "__type": "AddedToken",
            "content": "<|im_end|>",
            "special": True,
        },
        "chat_template": CHATML,
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        "tokenizer_class": "Evil",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [3, 2]}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.fixture(scope="session")
def bpe(bpe_directory) -> Tokenizer:
    return load_tokenizer(bpe_directory)


@pytest.fixture(scope="session")
def marked(bpe) -> Tokenizer:
    """The same with a template that marks what the assistant wrote."""
    return dataclasses.replace(bpe, chat_template=MARKED)


@pytest.fixture(scope="session")
def plain(bpe) -> Tokenizer:
    """The same without a chat template."""
    return dataclasses.replace(bpe, chat_template=None)


@pytest.fixture(scope="session")
def digits() -> Tokenizer:
    return character_tokenizer("0123456789+=;#")
