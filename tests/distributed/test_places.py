"""Hosts whose folders and files are not the same: said before anything is compiled."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaxloop.loop.folder import RunFolder
from tests.distributed import crew, small

CONFIG = """
from dataclasses import replace
from tests.distributed import small

def get_config(variant=None):
    return replace(small.get_config("dpo"), seed={seed})
"""
TALKING = {"jit__psum", "jit__identity_fn"}
"""Programs by which processes tell one another something."""


@pytest.fixture
def hosts(tmp_path) -> list[Path]:
    """The disks of two hosts: the current folders of their processes."""
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for folder in folders:
        folder.mkdir()
    return folders


def refused(tmp_path: Path, hosts: list[Path], words: list[str], said: str) -> None:
    """Both processes say that, before anything of the run is compiled."""
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    ended = crew.run(tmp_path, ["-m", "jaxloop", *words], 2, hosts, **compiled)
    assert ended.codes == [2, 2], "\n".join(ended.logs)
    for log in ended.logs:
        assert said in log, log
        assert "Traceback" not in log
    programs = {path.name.split("-")[0] for path in (tmp_path / "programs").iterdir()}
    assert programs <= TALKING


@pytest.mark.parametrize(
    "command", ["run", pytest.param("eval", marks=pytest.mark.full)]
)
def test_an_output_folder_that_each_host_has_of_its_own(tmp_path, hosts, command):
    """Where both have had a run of the same configuration, too."""
    config = replace(small.get_config("dpo"), out="out")
    for host in hosts:
        RunFolder(host / "out").claim(config, [])
    words = [command, f"{crew.SMALL}:dpo", "out=out"]
    refused(
        tmp_path,
        hosts,
        words,
        "of process 1 is not that of process 0: each host has its own; give one that "
        "all hosts see with out=DIR",
    )


def test_data_that_differ(tmp_path, hosts):
    small.save_model(tmp_path / "model")
    for count, host in enumerate(hosts, 23):
        small.write_rows(host / "rows.jsonl", count)
    words = ["prompts", f"{crew.SMALL}:files", f"out={tmp_path / 'out'}"]
    words += [f"model.path={tmp_path / 'model'}", "data.train=rows.jsonl"]
    said = "the data of process 1 is not that of process 0: give all hosts the same"
    refused(tmp_path, hosts, words, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_configurations_that_differ(tmp_path, hosts):
    for seed, host in enumerate(hosts):
        (host / "config.py").write_text(CONFIG.format(seed=seed))
    words = ["run", "config.py", f"out={tmp_path / 'out'}"]
    said = "the configuration of process 1 is not that of process 0: give all"
    refused(tmp_path, hosts, words, said)
    assert not (tmp_path / "out").exists()
