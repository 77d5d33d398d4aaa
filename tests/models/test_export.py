"""Saving: the same bits, files that others read, and all of it or nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxloop.models import export
from jaxloop.models.export import save_model
from jaxloop.models.huggingface import load_params, read_shape


def stored_tensors(directory) -> dict[str, np.ndarray]:
    files = sorted(directory.glob("*.safetensors"))
    return {k: v for file in files for k, v in load_file(file).items()}


def assert_same_bits(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(
            a[name].view(np.uint8), b[name].view(np.uint8), strict=True, err_msg=name
        )


def test_round_trip_is_exact(checkpoint, load, tokenizer, tmp_path):
    original = stored_tensors(checkpoint.directory)
    dtype = original["model.norm.weight"].dtype
    params = load(checkpoint, dtype)
    save_model(tmp_path / "m", checkpoint.shape, params, tokenizer)
    assert read_shape(tmp_path / "m") == checkpoint.shape
    assert_same_bits(stored_tensors(tmp_path / "m"), original)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
        params,
        load(tmp_path / "m", dtype),
    )


def test_stored_in_another_dtype(checkpoint_named, load, tokenizer, tmp_path):
    """Master weights in float32, export in bfloat16: rounded once, to nearest."""
    checkpoint = checkpoint_named("qwen3")
    save_model(
        tmp_path / "m", checkpoint.shape, load(checkpoint), tokenizer, dtype="bfloat16"
    )
    assert (
        json.loads((tmp_path / "m/config.json").read_text())["torch_dtype"]
        == "bfloat16"
    )
    expected = {
        name: np.asarray(jnp.asarray(tensor).astype(jnp.bfloat16))
        for name, tensor in stored_tensors(checkpoint.directory).items()
    }
    assert_same_bits(stored_tensors(tmp_path / "m"), expected)


def test_several_files_have_an_index(checkpoint_named, load, tokenizer, tmp_path):
    checkpoint = checkpoint_named("llama_biases")
    params = load(checkpoint)
    save_model(tmp_path / "m", checkpoint.shape, params, tokenizer, shard_bytes=20_000)
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    original, total = stored_tensors(checkpoint.directory), 0
    assert set(index["weight_map"]) == set(original)
    for file in files:
        with safe_open(tmp_path / "m" / file, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            names = [n for n, of in index["weight_map"].items() if of == file]
            assert set(opened.offset_keys()) == set(names)
            held = sum(original[name].nbytes for name in names)
            assert held <= 20_000
            total += held
    assert index["metadata"]["total_size"] == total
    assert_same_bits(stored_tensors(tmp_path / "m"), original)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "m"), params)


def test_a_cut_model_is_saved_whole(checkpoint_named, mesh_of, tokenizer, tmp_path):
    checkpoint = checkpoint_named("llama_biases")
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    params = load_params(checkpoint.directory, checkpoint.shape, mesh)
    save_model(tmp_path / "m", checkpoint.shape, params, tokenizer)
    assert_same_bits(
        stored_tensors(tmp_path / "m"), stored_tensors(checkpoint.directory)
    )


def test_one_tensor_at_a_time(checkpoint_named, load, tokenizer, tmp_path, monkeypatch):
    checkpoint, largest = checkpoint_named("qwen3"), []
    to_host = export._to_host

    def watched(x):
        largest.append(x.nbytes)
        return to_host(x)

    params = load(checkpoint)
    monkeypatch.setattr(export, "_to_host", watched)
    save_model(tmp_path / "m", checkpoint.shape, params, tokenizer)
    original = stored_tensors(checkpoint.directory)
    assert sorted(largest) == sorted(tensor.nbytes for tensor in original.values())


def test_all_eos_ids_are_written(checkpoint_named, load, make_tokenizer, tmp_path):
    checkpoint = checkpoint_named("qwen2_tied")
    params = load(checkpoint)
    generation = {"eos_token_id": [61, 63], "temperature": 0.7, "do_sample": True}
    save_model(
        tmp_path / "a",
        checkpoint.shape,
        params,
        make_tokenizer(),
        generation=generation,
    )
    written = json.loads((tmp_path / "a/generation_config.json").read_text())
    tokens = {"eos_token_id": [62, 63, 61], "bos_token_id": 1, "pad_token_id": 0}
    assert written == generation | tokens
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config.items() >= tokens.items()
    assert (tmp_path / "a/tokenizer.json").is_file()

    one = make_tokenizer(eos_ids=(5,), bos_ids=())
    save_model(tmp_path / "b", checkpoint.shape, params, one)
    written = json.loads((tmp_path / "b/generation_config.json").read_text())
    assert written == {"eos_token_id": 5, "pad_token_id": 0}


def test_all_or_nothing(checkpoint_named, load, tokenizer, tmp_path, monkeypatch):
    checkpoint = checkpoint_named("qwen2_tied")
    params, target = load(checkpoint), tmp_path / "deep/m"

    def full_disk(*args, **options):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_tensors", full_disk)
        with pytest.raises(OSError, match="no space"):
            save_model(target, checkpoint.shape, params, tokenizer)
    assert list(target.parent.iterdir()) == []

    target.mkdir()  # an empty directory is as good as none
    save_model(target, checkpoint.shape, params, tokenizer)
    assert [path.name for path in target.parent.iterdir()] == ["m"]
    before = stored_tensors(target)
    with pytest.raises(ValueError, match="not empty"):
        save_model(target, checkpoint.shape, params, tokenizer)
    assert_same_bits(stored_tensors(target), before)


def test_what_cannot_be_saved_is_refused(
    checkpoint_named, load, tokenizer, make_tokenizer, tmp_path
):
    checkpoint = checkpoint_named("qwen2_tied")
    shape, params = checkpoint.shape, load(checkpoint)
    less = {name: leaf for name, leaf in params.items() if name != "final_norm_D"}
    mixed = params | {"final_norm_D": params["final_norm_D"].astype("bfloat16")}
    cases = [
        (params, make_tokenizer(eos_ids=(64,)), {}, r"ids \[64\] are outside"),
        (less, tokenizer, {}, "final_norm_D"),
        (mixed, tokenizer, {}, "give the dtype"),
        (params, tokenizer, {"dtype": "float64"}, "float64 cannot be stored"),
    ]
    for tree, tokens, options, message in cases:
        with pytest.raises(ValueError, match=message):
            save_model(tmp_path / "m", shape, tree, tokens, **options)
        assert not (tmp_path / "m").exists()
    save_model(tmp_path / "m", shape, mixed, tokenizer, dtype="float32")


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
index, port, source, target = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"localhost:{port}", 2, index)
from pathlib import Path
from types import SimpleNamespace
from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.models.export import save_model
from jaxloop.models.huggingface import load_params, read_shape
shape = read_shape(source)
params = load_params(source, shape, make_mesh(MeshShape(1, 2, 2)))
assert not params["embed_VD"].is_fully_addressable
tokenizer = SimpleNamespace(eos_ids=(62,), bos_ids=(), pad_id=0, save=lambda at: None)
save_model(target, shape, params, tokenizer)
assert (Path(target) / "model.safetensors").is_file()
"""


@pytest.mark.full
def test_two_processes_save_one_model(checkpoint_named, tmp_path):
    source = checkpoint_named("llama_biases").directory
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    paths = {"PYTHONPATH": f"{root}:{root / 'kernels'}", "XLA_FLAGS": ""}
    words = [str(port), str(source), str(tmp_path / "m")]
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(i), *words], env=env)
        for i, env in enumerate([{**os.environ, **paths}] * 2)
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    assert_same_bits(stored_tensors(tmp_path / "m"), stored_tensors(source))
