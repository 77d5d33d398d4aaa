"""Loading: the numbers of transformers, placed in parts, and clear refusals."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file

from jaxloop.models.huggingface import load_params, read_shape, resolve_model_path
from jaxloop.models.tensor_files import TensorFiles

ATOL = 1e-4


def test_logits_and_greedy_choices_are_those_of_transformers(
    checkpoint, load, logits_of
):
    """One compiled call: the model is causal, so rows may be filled up on the right."""
    expected = checkpoint.expected
    rows = [*expected["tokens"]]
    sizes = expected["greedy_prompt_length"]
    for prompt, size, continuation in zip(
        expected["greedy_prompt"], sizes, expected["greedy_tokens"], strict=True
    ):
        rows.append(np.concatenate([prompt[:size], continuation]))
    longest = max(map(len, rows))
    tokens_BT = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    logits_BTV = logits_of(checkpoint.shape, load(checkpoint), tokens_BT)

    B, T = expected["tokens"].shape
    actual = logits_BTV[:B, :T]
    np.testing.assert_allclose(actual, expected["logits"], atol=ATOL, rtol=0)
    for row, size in enumerate(sizes):
        best = logits_BTV[B + row, size - 1 :].argmax(-1)
        new = expected["greedy_tokens"][row]
        np.testing.assert_array_equal(best[: len(new)], new)


@pytest.mark.parametrize("name", ["llama_biases", "qwen3"])
def test_eight_devices_hold_what_one_holds(
    name, checkpoint_named, load, mesh_of, logits_of
):
    checkpoint = checkpoint_named(name)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    single = load(checkpoint)
    sharded = load_params(checkpoint.directory, checkpoint.shape, mesh)
    jax.tree.map(np.testing.assert_array_equal, single, sharded)
    q_LDNH = sharded["layers"]["attn"]["q_DNH"]
    heads, width = checkpoint.shape.heads, checkpoint.shape.width
    assert q_LDNH.sharding.shard_shape(q_LDNH.shape)[1:3] == (width // 2, heads // 2)
    actual = logits_of(checkpoint.shape, sharded, checkpoint.expected["tokens"], mesh)
    np.testing.assert_allclose(actual, checkpoint.expected["logits"], atol=ATOL, rtol=0)


def test_each_part_is_read_once_and_no_matrix_as_a_whole(
    checkpoint_named, mesh_of, monkeypatch
):
    checkpoint = checkpoint_named("llama_biases")
    asked: dict[str, list[int]] = {}
    read = TensorFiles.read

    def counted(self, name, index):
        block = read(self, name, index)
        asked.setdefault(name, []).append(block.nbytes)
        return block

    monkeypatch.setattr(TensorFiles, "read", counted)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    load_params(checkpoint.directory, checkpoint.shape, mesh)
    tensors = load_file(checkpoint.directory / "model.safetensors")
    assert set(asked) == set(tensors)
    for name, tensor in tensors.items():
        # Copies along `data` share one read; matrices are cut over fsdp and tensor.
        assert sum(asked[name]) == tensor.nbytes, name
        if tensor.ndim == 2:
            assert max(asked[name]) == tensor.nbytes // 4, name


def test_numbers_become_the_dtype_asked_for(checkpoint_named, load):
    for name in ("qwen2_tied", "qwen3"):  # stored in bfloat16, and in float32
        wide, narrow = (
            load(checkpoint_named(name), d) for d in ("float32", "bfloat16")
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(
                np.asarray(a).astype(ml_dtypes.bfloat16), np.asarray(b), strict=True
            ),
            wide,
            narrow,
        )


def test_progress_ends_at_the_total(checkpoint_named, one_device):
    checkpoint, seen = checkpoint_named("qwen3"), []
    load_params(
        checkpoint.directory,
        checkpoint.shape,
        one_device,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == seen[0][1]


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a checkpoint whose dict of tensors went through `change`."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_all_that_differs_is_in_one_error(checkpoint_named, load, tmp_path):
    def change(tensors):
        for name in list(tensors):
            if "mlp" in name and name.endswith("weight"):
                del tensors[name]
        tensors["model.norm.weight"] = np.ones(31, np.float32)
        tensors["model.layers.0.input_layernorm.weight"] = np.ones(32, np.int8)
        tensors |= {f"extra.{i}": np.ones(1, np.float32) for i in range(25)}

    source = checkpoint_named("qwen3").directory
    with pytest.raises(ValueError, match="6 missing") as caught:
        load(rewrite(source, tmp_path / "m", change))
    message = str(caught.value)
    assert "model.layers.1.mlp.down_proj.weight" in message
    assert "25 unexpected: extra." in message
    assert message.count("extra.") == 20
    assert "and 5 more" in message
    assert "model.norm.weight (31,), config.json says (32,)" in message
    assert "model.layers.0.input_layernorm.weight I8" in message
    assert str(tmp_path / "m") in message


def test_a_tied_model_may_carry_its_matrix_twice(checkpoint_named, load, tmp_path):
    checkpoint = checkpoint_named("qwen2_tied")

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    twice = load(rewrite(checkpoint.directory, tmp_path / "same", change))
    jax.tree.map(np.testing.assert_array_equal, twice, load(checkpoint))

    def differ(tensors):
        change(tensors)
        tensors["lm_head.weight"][-1, -1] += 1

    with pytest.raises(ValueError, match=r"tie_word_embeddings.*differs"):
        load(rewrite(checkpoint.directory, tmp_path / "other", differ))


def test_an_index_is_followed(checkpoint_named, load, tmp_path):
    checkpoint = checkpoint_named("qwen3")
    shutil.copy(checkpoint.directory / "config.json", tmp_path)
    tensors = load_file(checkpoint.directory / "model.safetensors")
    parts = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path), load(checkpoint))

    for outside in ("c.safetensors", "../golden/a.safetensors", ".."):
        weight_map["lm_head.weight"] = outside
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match="not there"):
            load(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="weight_map"):
        load(tmp_path)


def test_pickles_and_broken_files_are_refused(checkpoint_named, load, tmp_path):
    shutil.copy(checkpoint_named("qwen3").directory / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"neither .* is there"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin.*Convert.*save_pretrained"
    ):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        load(tmp_path)
    whole = (checkpoint_named("qwen3").directory / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="interrupted"):
        load(tmp_path)


def test_sizes_that_the_mesh_cannot_cut_are_named(checkpoint_named, mesh_of):
    checkpoint = checkpoint_named("qwen3")
    with pytest.raises(ValueError, match="kv_heads = 2 cannot be cut into 4 parts"):
        load_params(checkpoint.directory, checkpoint.shape, mesh_of(tensor=4))


def test_config_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        read_shape(tmp_path)
    for text, problem in [("{", "is not JSON"), ("[]", "not an object")]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json.*{problem}"):
            read_shape(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ValueError, match=rf"{tmp_path}.*GPT2LMHeadModel.*LlamaFor"):
        read_shape(tmp_path)


def test_a_directory_is_its_own_path(tmp_path):
    assert resolve_model_path(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="revision"):
        resolve_model_path(tmp_path, revision="main")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        resolve_model_path(tmp_path / "file")
    for absent in (tmp_path / "absent", "./absent", "a/b/c", "absent", "~/absent"):
        with pytest.raises(ValueError, match="no such directory"):
            resolve_model_path(absent)


def test_hub_ids_fetch_no_pickles(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model_path("owner/model", revision="abc") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/model", "abc")

    from huggingface_hub.utils import filter_repo_objects

    files = ["model-00001-of-00002.safetensors", "config.json", "tokenizer.json"]
    files += ["merges.txt", "chat_template.jinja"]
    others = ["pytorch_model.bin", "modeling_x.py", "original/params.json", "m.gguf"]
    kept = filter_repo_objects(
        files + others,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == files


def test_without_a_network_the_way_out_is_named():
    # conftest sets HF_HUB_OFFLINE: the client refuses before it opens a connection.
    with pytest.raises(ValueError, match=r"owner/model.*hf download owner/model"):
        resolve_model_path("owner/model")


def bare(kind: type[Exception]) -> Exception:
    """Without the HTTP response that the constructor wants."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errors.HFValidationError("bad id"), "bad id"),
        (bare(errors.GatedRepoError), "ask for access"),
        (bare(errors.RepositoryNotFoundError), "no such public model"),
        (bare(errors.RevisionNotFoundError), "no revision 'v1'"),
        (errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (ConnectionError("x"), "cannot be reached"),
    ],
)
def test_hub_errors_become_advice(error, advice, monkeypatch):
    def download(name, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match=advice):
        resolve_model_path("owner/model", "v1")
