"""A checkpoint is whole or not there, and comes back bit for bit or not at all."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloop import folders
from jaxloop.checkpoint import Checkpointer, CheckpointError, find_step

ROOT = Path(__file__).parents[1]


def make_tree(seed: float = 0.0) -> dict:
    """Every kind of leaf that a train state has, and an empty array."""
    w_84 = np.arange(32, dtype=np.float32).reshape(8, 4) / 7 + seed
    return {
        "params": {"w": jnp.array(w_84), "half": jnp.array(w_84 * 3, jnp.bfloat16)},
        "step": jnp.array(7, jnp.int32),
        "optimiser": (None, {"mu": jnp.array(-w_84), "empty": jnp.zeros((0, 3))}),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 2),
        "raw_key": jax.random.PRNGKey(5),
        "host": np.array([1, 2], np.int32),
    }


def abstract(tree, sharding=None):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or one), tree
    )


def bits(tree) -> list[bytes]:
    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [data(x).tobytes() + str(x.dtype).encode() for x in jax.tree.leaves(tree)]


def filled(directory: Path, *steps: int, **options) -> Path:
    """A directory with small good steps; step n holds the value n."""
    with Checkpointer(directory, **options) as saver:
        for step in steps:
            saver.save(step, {"x": jnp.full(4, step)}, {"round": step})
    return directory


def a_data_file(folder: Path) -> Path:
    """The largest file: the one with the arrays in it."""
    files = [path for path in (folder / "arrays").rglob("*") if path.is_file()]
    return max(files, key=lambda path: (path.stat().st_size, path))


def test_round_trip_is_bit_for_bit(tmp_path):
    tree, position = make_tree(), {"round": 2, "phase": "train", "cursor": [1, 2]}
    with Checkpointer(tmp_path) as saver:
        saver.save(12, tree, position, metrics={"reward": 0.5, "loss": float("nan")})
    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.latest_good() == 12
    restored, found = reader.restore(12, abstract(tree))
    assert found == position
    assert bits(restored) == bits(tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    draw = jax.random.bits(restored["key"])
    assert draw == jax.random.bits(tree["key"])
    assert reader.metrics(12) == {"reward": 0.5}  # NaN is no JSON
    assert reader.leaves(12)["params/half"] == ((8, 4), "bfloat16")
    assert reader.notes == []


def test_a_part_can_be_restored_without_the_rest(tmp_path):
    tree = make_tree()
    with Checkpointer(tmp_path) as saver:
        saver.save(1, tree, {})
        part = {"params": abstract(tree["params"]), "host": abstract(tree["host"])}
        restored, _ = saver.restore(1, part, partial=True)
    assert bits(restored["params"]) == bits(tree["params"])
    assert isinstance(restored["host"], jax.Array)
    assert restored["host"].tolist() == [1, 2]


def test_a_named_tree_lives_beside_the_steps(tmp_path):
    tree = make_tree()["params"]
    with Checkpointer(tmp_path, keep=1) as saver:
        assert not saver.has_named("seed")
        saver.save_named("seed", tree)
        for step in range(3):
            saver.save(step, {"x": jnp.zeros(1)}, {})
        assert saver.has_named("seed")
        assert saver.steps() == [2]
        assert bits(saver.restore_named("seed", abstract(tree))) == bits(tree)
        with pytest.raises(ValueError, match="step_1"):
            saver.save_named("step_1", tree)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {}], ids=["fsdp=8", "one device"])
def test_restores_on_another_mesh(tmp_path, mesh_of, sizes):
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    w_84 = jnp.arange(32.0).reshape(8, 4)
    saved = {
        "w": jax.device_put(w_84, NamedSharding(mesh, P("fsdp", "tensor"))),
        "bias": jax.device_put(w_84[:, 0], NamedSharding(mesh, P())),
        "key": jax.device_put(jax.random.key(1), NamedSharding(mesh, P())),
    }
    with Checkpointer(tmp_path) as saver:
        saver.save(1, saved, {})
    other = mesh_of(**sizes)
    wanted = abstract(saved, NamedSharding(other, P()))
    wanted["w"] = abstract(saved["w"], NamedSharding(other, P("fsdp")))
    restored, _ = Checkpointer(tmp_path, read_only=True).restore(1, wanted)
    assert restored["w"].sharding == wanted["w"].sharding
    assert restored["bias"].sharding.is_equivalent_to(wanted["bias"].sharding, 1)
    assert bits(restored) == bits(saved)


def test_a_save_keeps_what_was_there_when_it_began(tmp_path):
    """The caller donates its arrays to the next train step right after `save`."""

    @partial(jax.jit, donate_argnums=0)
    def overwrite(x):
        return x * 0 - 1

    x = jnp.arange(200_000, dtype=jnp.float32)
    host, position = np.arange(5, dtype=np.int32), {"done": [1]}
    with Checkpointer(tmp_path) as saver:
        saver.save(1, {"x": x, "host": host}, position)
        x = overwrite(x).block_until_ready()
        host[:] = -1
        position["done"].append(2)
        wanted = abstract({"x": x, "host": host})
        restored, found = saver.restore(1, wanted)
    np.testing.assert_array_equal(restored["x"], np.arange(200_000))
    assert restored["host"].tolist() == [0, 1, 2, 3, 4]
    assert found == {"done": [1]}


def flip_a_bit(folder: Path):
    path = a_data_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def truncate(folder: Path):
    os.truncate(a_data_file(folder), 10)


def lose_a_file(folder: Path):
    a_data_file(folder).unlink()


def lose_the_manifest(folder: Path):
    (folder / "manifest.json").unlink()


def garble_the_manifest(folder: Path):
    (folder / "manifest.json").write_text('{"files": [3]}')


def change_the_position(folder: Path):
    path = folder / "position.json"
    path.write_text(path.read_text().replace('"round": 3', '"round": 4'))


DAMAGE = {
    flip_a_bit: "SHA-256",
    truncate: "10 bytes instead of",
    lose_a_file: "is missing",
    lose_the_manifest: "manifest.json is missing",
    garble_the_manifest: "manifest.json cannot be read",
    change_the_position: "position.json has other bytes",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_is_seen_and_the_step_before_taken(tmp_path, damage, caplog):
    filled(tmp_path, 2, 3)
    damage(tmp_path / "step_00000003")
    saver = Checkpointer(tmp_path)
    assert saver.latest_good() == 2
    assert DAMAGE[damage] in saver.notes[0]
    assert "step_00000003" in caplog.text
    assert "continuing from step 2" in caplog.text
    assert (tmp_path / "corrupt-step_00000003-1").is_dir()
    # A later save of the same step does not collide with what was moved aside.
    saver.save(3, {"x": jnp.full(4, 33)}, {}, block=True)
    assert saver.latest_good() == 3
    restored, _ = saver.restore(3, abstract({"x": jnp.full(4, 33)}))
    assert restored["x"].tolist() == [33] * 4
    saver.close()


def test_a_damaged_step_is_never_restored(tmp_path):
    filled(tmp_path, 3)
    flip_a_bit(tmp_path / "step_00000003")
    reader = Checkpointer(tmp_path, read_only=True)
    with pytest.raises(CheckpointError, match="SHA-256"):
        reader.restore(3, abstract({"x": jnp.full(4, 3)}))
    assert reader.latest_good() is None
    assert "no good step is left" in reader.notes[-1]
    assert reader.steps() == [3], "a reader moves nothing"


def test_another_model_is_listed_leaf_by_leaf(tmp_path):
    tree = make_tree()
    with Checkpointer(tmp_path) as saver:
        saver.save(1, tree, {})
        wanted = abstract(tree)
        wanted["params"]["w"] = jax.ShapeDtypeStruct((8, 5), "float32")
        wanted["params"]["half"] = jax.ShapeDtypeStruct((8, 4), "float32")
        wanted["params"]["new"] = wanted["step"]
        del wanted["raw_key"]
        with pytest.raises(CheckpointError) as caught:
            saver.restore(1, wanted)
        text = str(caught.value)
        assert "params/w: saved float32[8, 4], wanted float32[8, 5]" in text
        assert "params/half: saved bfloat16[8, 4], wanted float32[8, 4]" in text
        assert "missing: params/new int32[]" in text
        assert "unexpected: raw_key uint32[2]" in text
        many = {f"w{i}": wanted["step"] for i in range(40)}
        with pytest.raises(CheckpointError, match="and 29 more"):
            saver.restore(1, many)
        with pytest.raises(CheckpointError, match="the directory has step_00000001"):
            saver.restore(2, wanted)


def test_the_last_and_the_best_are_kept(tmp_path):
    rewards = [0.1, 0.9, 0.3, 0.9, 0.2, float("nan"), 0.4, 0.5]
    with Checkpointer(tmp_path, keep=2, best_metric="reward") as saver:
        for step, reward in enumerate(rewards):
            saver.save(step, {"x": jnp.full(1, step)}, {}, metrics={"reward": reward})
        saver.wait()
        assert saver.best() == 3  # the newer of two equals
        assert saver.steps() == [3, 6, 7]
    lowest = Checkpointer(tmp_path, best_metric="reward", best_mode="min")
    assert lowest.best() == 6
    reader = Checkpointer(tmp_path, read_only=True)  # as the newest step says
    assert reader.best() == 3
    assert find_step(tmp_path / "best") == (tmp_path, 3)


def test_where_no_best_is_kept_there_is_none_to_find(tmp_path):
    directory = filled(tmp_path, 1, 2)
    assert Checkpointer(directory, read_only=True).best() is None
    with pytest.raises(CheckpointError, match=r"checkpoint\.best=METRIC"):
        find_step(directory / "best")


def test_an_old_step_goes_only_after_the_new_one_is_good(tmp_path, monkeypatch):
    """At every moment of a save with keep=1 some step verifies."""
    filled(tmp_path, 1, keep=1)
    seen = []

    def watched(function):
        def call(folder):
            good = [p.name for p in tmp_path.glob("step_*") if not folders.problems(p)]
            seen.append((function.__name__, good))
            return function(folder)

        return call

    for name in ("seal", "put_in_place", "delete"):
        monkeypatch.setattr(folders, name, watched(getattr(folders, name)))
    filled(tmp_path, 2, keep=1)
    assert [name for name, _ in seen] == ["seal", "put_in_place", "delete"]
    assert all(good for _, good in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000002"]


def test_leftovers_of_a_kill_are_tidied_up(tmp_path):
    filled(tmp_path, 1, 2)
    (tmp_path / "unfinished-step_00000003" / "arrays").mkdir(parents=True)
    (tmp_path / "deleting-step_00000000").mkdir()
    (tmp_path / "step_00000002").rename(tmp_path / "replaced-step_00000002")
    assert Checkpointer(tmp_path).latest_good() == 2  # came back: nothing replaced it
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000001", "step_00000002"]


def test_a_failed_save_surfaces_and_keeps_the_last_good_step(tmp_path, monkeypatch):
    filled(tmp_path, 1)
    saver = Checkpointer(tmp_path)

    def full_disk(folder):
        raise OSError(28, "No space left on device")

    tree = {"x": jnp.zeros(4)}
    with monkeypatch.context() as patch:
        patch.setattr(folders, "seal", full_disk)
        saver.save(2, tree, {})
        message = r"step_00000002 .*No space left(.|\n)*step 1 is still there"
        with pytest.raises(CheckpointError, match=message):
            saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    saver.save(2, tree, {})  # with room again it goes on
    saver.close()
    assert saver.steps() == [1, 2]


def test_what_orbax_cannot_write_surfaces_too(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save(1, {"x": jnp.zeros(2)}, {"a": object()})
    monkeypatch.setattr(saver, "directory", tmp_path / "file" / "below")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"Not a directory(.|\n)*no older step"):
        saver.save(1, {"x": jnp.zeros(2)}, {})


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="out=DIR"):
        Checkpointer(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="reading only"):
        Checkpointer(tmp_path, read_only=True).save(1, {"x": jnp.zeros(1)}, {})
    with pytest.raises(ValueError, match="keep=0"):
        Checkpointer(tmp_path, keep=0)


def test_latest_is_found_by_looking(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(CheckpointError, match="no step_"):
        find_step(out)
    directory = filled(out / "checkpoints", 5, 9)
    for path in (out, directory, directory / "latest"):
        assert find_step(path) == (directory, 9)
    assert find_step(directory / "step_00000005") == (directory, 5)
    flip_a_bit(directory / "step_00000009")
    assert find_step(directory / "latest") == (directory, 5)
    with pytest.raises(CheckpointError, match="step_00000007 is not there"):
        find_step(directory / "step_00000007")


def test_close_leaves_no_thread_behind(tmp_path):
    before = set(threading.enumerate())
    filled(tmp_path, 1, 2)
    Checkpointer(tmp_path).restore(2, abstract({"x": jnp.full(4, 2)}))
    left = set(threading.enumerate()) - before
    for thread in left:  # one that is just ending is fine
        thread.join(timeout=5)
    assert not [thread.name for thread in left if thread.is_alive()]


SAVING_FOREVER = """
import sys, jax, jax.numpy as jnp
from jaxloop.checkpoint import Checkpointer
with Checkpointer(sys.argv[1], keep=2) as saver:
    step = saver.latest_good() or 0
    print("ready", step, flush=True)
    while True:
        step += 1
        print("saving", step, flush=True)
        tree = {f"w{i}": jnp.full((50, 50), step + i) for i in range(8)}
        saver.save(step, tree, {"step": step})
"""


def test_killed_while_saving_the_next_start_finds_a_whole_step(tmp_path):
    """SIGKILL at random instants of back-to-back saves, again and again."""
    rng = random.Random(0)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    environment.pop("XLA_FLAGS", None)
    reached = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING_FOREVER, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {reached}\n"
        begun = rng.randint(1, 4)
        for count in range(begun):
            assert process.stdout.readline() == f"saving {reached + count + 1}\n"
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        saver = Checkpointer(tmp_path)
        found = saver.latest_good()
        assert saver.notes == [], "a kill leaves whole steps, no damaged ones"
        # When a save begins, all before the one before it are good.
        assert (found or 0) >= reached + begun - 2
        assert (found or 0) >= reached
        reached = found or 0
        if found:
            assert saver.position(found) == {"step": found}
            wanted = {
                f"w{i}": jax.ShapeDtypeStruct((50, 50), "int32") for i in range(8)
            }
            tree, _ = saver.restore(found, wanted)
            for i in range(8):
                assert (tree[f"w{i}"] == found + i).all()
    names = {path.name for path in tmp_path.iterdir()}
    assert all(name.startswith("step_") for name in names), "leftovers were tidied up"


def test_a_save_of_a_small_model_hardly_blocks(tmp_path):
    """100,000 parameters in 36 arrays: well under 100 ms, here with room for noise."""
    tree = {f"w{i}": jnp.full((60, 47), i, jnp.float32) for i in range(36)}
    times = []
    with Checkpointer(tmp_path) as saver:
        for step in range(6):
            start = time.perf_counter()
            saver.save(step, tree, {})
            times.append(time.perf_counter() - start)
            saver.wait()
    assert min(times) < 0.1, times


def test_the_manifest_lists_every_file(tmp_path):
    folder = filled(tmp_path, 1) / "step_00000001"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert set(listed) | {"manifest.json"} == files
