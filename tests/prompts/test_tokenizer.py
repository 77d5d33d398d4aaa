import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.prompts.tokenizer import character_tokenizer, load_tokenizer

ALPHABET = "abc 0\n+é<>"
CHARACTERS = character_tokenizer(ALPHABET)
TALK = (
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the end"},
)


@given(st.text(alphabet=ALPHABET))
@settings(max_examples=50, deadline=None)
def test_characters_round_trip_one_token_each(text):
    ids = CHARACTERS.encode(text)
    assert len(ids) == len(text)
    assert CHARACTERS.decode((*ids, *CHARACTERS.eos_ids)) == text


def test_characters_are_numbered_in_the_order_of_the_alphabet():
    assert CHARACTERS.encode(ALPHABET) == tuple(range(2, 2 + len(ALPHABET)))
    assert (CHARACTERS.pad_id, CHARACTERS.eos_ids) == (0, (1,))
    assert CHARACTERS.size == 2 + len(ALPHABET)


def test_a_character_outside_the_alphabet_is_named():
    with pytest.raises(ValueError, match="cannot write 'abx'"):
        CHARACTERS.encode("abx")
    with pytest.raises(ValueError, match="each of them once"):
        character_tokenizer("aba")


def test_saved_characters_load_in_transformers_with_the_same_ids(tmp_path):
    from transformers import AutoTokenizer

    CHARACTERS.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert tuple(theirs(ALPHABET).input_ids) == CHARACTERS.encode(ALPHABET)
    assert theirs.decode(CHARACTERS.encode(ALPHABET)) == ALPHABET
    assert (theirs.eos_token_id, theirs.pad_token_id) == (1, 0)
    assert load_tokenizer(tmp_path).fingerprint == CHARACTERS.fingerprint
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_loading_takes_all_ends_and_never_their_code(bpe):
    # The directory names a class `evil.Evil`: nothing of it is looked for.
    assert bpe.eos_ids == (2, 3)
    assert bpe.pad_id == 2  # none of its own, so the end token
    assert bpe.bos_ids == (0,)
    assert bpe.decode(bpe.encode("hello <|im_end|>")) == "hello "


def test_a_truncation_stored_in_the_file_is_not_obeyed(bpe):
    assert bpe.decode(bpe.encode("a long text " * 20)) == "a long text " * 20


def test_bos_is_put_once(bpe):
    once = (0, *bpe.encode("hello"))
    assert bpe.encode_prompt("hello") == once
    assert bpe.encode_prompt("<s>hello") == once
    with_bos = load_with_template(bpe, "{{ bos_token }}{{ messages[0].content }}")
    assert with_bos.chat_ids(TALK, add_generation_prompt=True) == once


def load_with_template(tokenizer, template):
    return dataclasses.replace(tokenizer, chat_template=template)


def test_saving_copies_the_files_and_transformers_agrees(bpe, tmp_path):
    from transformers import AutoTokenizer

    bpe.save(tmp_path)
    for name, content in bpe.files.items():
        assert (tmp_path / name).read_bytes() == content
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "again.json")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["auto_map"], config["tokenizer_class"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    out = theirs.apply_chat_template(
        list(TALK), add_generation_prompt=True, return_dict=False
    )
    assert tuple(out) == bpe.chat_ids(TALK, add_generation_prompt=True)


def test_another_template_is_saved_with_the_tokenizer(bpe_directory, tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}!")
    tokenizer = load_tokenizer(bpe_directory, chat_template=str(template))
    assert tokenizer.chat_text(TALK, add_generation_prompt=False) == "hello!"
    tokenizer.save(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.chat_template == "{{ messages[0].content }}!"
    with pytest.raises(ValueError, match="neither Jinja text nor a file"):
        load_tokenizer(bpe_directory, chat_template="nowhere.jinja")


def test_generation_marks_become_a_mask(marked, bpe):
    ids, mask = marked.chat_mask(TALK)
    written = [i for i, m in zip(ids, mask, strict=True) if m]
    assert marked.hf.decode(written) == "the end<|im_end|>"
    assert ids == bpe.chat_ids(TALK, add_generation_prompt=False)
    with pytest.raises(ValueError, match="chat template has no"):
        bpe.chat_mask(TALK)


def test_no_chat_template_names_both_ways_out(plain):
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template") as error:
        plain.chat_ids(TALK, add_generation_prompt=True)
    assert "data.chat=false" in str(error.value)


def test_a_template_cannot_reach_python(bpe):
    hostile = load_with_template(
        bpe, "{{ messages.__class__.__mro__ }}{% if 1 %}{% endif %}"
    )
    with pytest.raises(ValueError, match="the chat template refuses"):
        hostile.chat_text(TALK, add_generation_prompt=False)


def test_no_end_of_sequence_names_the_fix(bpe_directory, tmp_path):
    shutil.copy(bpe_directory / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="Write `eos_token` in tokenizer_config"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert load_tokenizer(tmp_path).eos_ids == (3,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5000}')
    with pytest.raises(ValueError, match=r"\[5000\] are not in tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_directory_without_tokenizer_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no directory '/nowhere'"):
        load_tokenizer("/nowhere")


def test_the_fingerprint_tells_vocabularies_and_ends_apart(bpe_directory, tmp_path):
    shutil.copytree(bpe_directory, tmp_path / "copy")
    same = load_tokenizer(tmp_path / "copy").fingerprint
    assert same == load_tokenizer(bpe_directory).fingerprint
    (tmp_path / "copy" / "generation_config.json").unlink()
    assert same != load_tokenizer(tmp_path / "copy").fingerprint


def test_nothing_is_printed_about_pytorch():
    code = (
        "import os; os.environ.pop('TRANSFORMERS_NO_ADVISORY_WARNINGS', None)\n"
        "from jaxloop.prompts.tokenizer import character_tokenizer\n"
        "character_tokenizer('ab')\n"
        "assert 'TRANSFORMERS_NO_ADVISORY_WARNINGS' not in os.environ"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
