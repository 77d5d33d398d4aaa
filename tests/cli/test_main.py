"""Exit codes, help, and the commands that take no configuration."""

import subprocess
import sys
from pathlib import Path

import pytest

import jaxloop
from jaxloop.cli import main as cli_main

ROOT = Path(jaxloop.__file__).parents[1]


def test_help_and_version_do_not_load_jax():
    code = (
        "import sys; from jaxloop.cli.main import main; "
        "codes = [main(a.split()) for a in ('--help', '--version', 'run --help', "
        "'run', 'eval --help', 'sample --help', 'report --help', 'convert --help', "
        "'judge --help')]; "
        "heavy = {'jax', 'flax', 'numpy', 'transformers'} & set(sys.modules); "
        "print(codes, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    codes = [0, 0, 0, 2, 0, 0, 0, 0, 0]
    assert done.stdout.splitlines()[-1] == f"{codes} set()", done.stderr
    assert f"jaxloop {jaxloop.__version__}" in done.stdout


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        ([], 2, "jaxloop COMMAND --help"),
        (["--help"], 0, "jaxloop run CONFIG.py"),
        (["ran"], 2, "did you mean jaxloop run?"),
        (["configs/x.py"], 2, "did you mean jaxloop run configs/x.py?"),
        (["xyz"], 2, "there is no command 'xyz'"),
        (["run"], 2, "must be a config file"),
        (["run", "a=1"], 2, "must be a config file, not 'a=1'"),
        (["run", "nowhere.py"], 2, "there is no config file nowhere.py"),
        (["run", "x.py", "--sweep"], 2, "--sweep needs a value"),
        (["report"], 2, "takes OUT"),
        (["report", "--fast", "x"], 2, "does not know --fast"),
        (["report", "nowhere"], 2, "no folder nowhere"),
        (["report", "--help"], 0, "OUT/report.html"),
        (["sample", "DIR"], 2, 'takes DIR and "PROMPT"'),
    ],
    ids=str,
)
def test_exit_codes(cli, argv, code, text):
    found, out, err = cli(*argv)
    assert found == code
    assert text in (err if code else out)
    assert "Traceback" not in err


def raise_in(module, error):
    """A function that raises `error` and seems to be defined in `module`."""
    scope = {"__name__": module, "error": error, "__builtins__": __builtins__}
    exec("def main(argv):\n    raise error", scope)
    return scope["main"]


@pytest.mark.parametrize(
    ("module", "error", "code"),
    [
        ("jaxloop.loop.run", ValueError("mend this"), 2),
        ("jaxloop_kernels.lm_head", NotImplementedError("mend this"), 2),
        ("jaxloop.models", ImportError("mend this"), 2),
        ("jaxloop.loop.run", AssertionError("ours"), 1),
        ("jaxloop.loop.run", KeyError("ours"), 1),
        ("numpy.linalg", ValueError("ours"), 1),
        ("jaxloop.loop.run", KeyboardInterrupt(), 130),
    ],
    ids=str,
)
def test_whose_fault_an_error_is(cli, monkeypatch, module, error, code):
    monkeypatch.setattr("jaxloop.cli.report.main", raise_in(module, error))
    found, _, err = cli("report", "x")
    assert found == code
    assert ("Traceback" in err) == (code == 1)
    assert str(error) in err


def test_a_value_error_from_an_expression_of_ours_is_a_fault(cli, monkeypatch):
    scope = {"__name__": "jaxloop.loop.run"}
    exec("def main(argv):\n    return int('x')", scope)
    monkeypatch.setattr("jaxloop.cli.report.main", scope["main"])
    code, _, err = cli("report", "x")
    assert code == 1
    assert "Traceback" in err


def test_every_listed_command_is_there():
    folder = Path(cli_main.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in cli_main.COMMANDS)


def test_sample(cli, called):
    code, out, _ = cli("sample", "DIR", "2+2=", "n=2", "--temperature", "0", "seed=7")
    assert code == 0
    assert out == "--- 1 of 2\nanswer 0\n--- 2 of 2\nanswer 1\n"
    path, prompt, sampling, seed, chat = called[0]
    assert (path, prompt, seed, chat) == ("DIR", "2+2=", 7, False)
    assert (sampling.n, sampling.temperature) == (2, 0.0)


def test_sample_draws_one_answer_by_default_and_names_all_problems(cli, called):
    assert cli("sample", "DIR", "hi")[:2] == (0, "answer 0\n")
    code, _, err = cli("sample", "DIR", "hi", "n=x", "seed=y", "tempature=1", "sede=1")
    assert code == 2
    assert "4 problems" in err
    assert "did you mean temperature?" in err
    assert "did you mean --seed?" in err
    code, out, _ = cli("sample", "DIR", "--help")
    assert code == 0
    assert "Samples of each prompt." in out
    assert "Another seed" in out


def test_report_and_convert(cli, called, tmp_path):
    assert cli("report", tmp_path)[:2] == (0, f"{tmp_path / 'report.html'}\n")
    target = tmp_path / "new"
    assert cli("convert", tmp_path, target)[:2] == (0, f"{target}\n")
    code, _, err = cli("convert", tmp_path / "none", target)
    assert (code, err) == (2, f"jaxloop: no checkpoint {tmp_path / 'none'}\n")
    target.mkdir()
    (target / "config.json").write_text("{}")
    code, _, err = cli("convert", tmp_path, target)
    assert code == 2
    assert "not empty" in err
