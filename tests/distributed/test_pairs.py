"""Two processes with four devices each do what one process does with eight."""

import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jaxloop.loop import run as loop_run
from jaxloop.loop.folder import read_records
from jaxloop.metrics import comparable, read_metrics
from jaxloop.records import Scored
from tests.distributed import crew, small
from tests.loop import killed

# Sums over devices are added in another order over the network than inside a process:
# differences of float32's last bits, which a few updates let grow (seen: 1e-6 to 1e-5
# of what is no difference of nearly equal numbers itself).
RELATIVE, ABSOLUTE = 1e-3, 1e-5
SAMPLED = {"dpo": 64, "grpo": 48}
"""Samples that the recipe draws, of which all tokens must be the same."""
END_SECONDS = 60
"""In which a job must end that has lost a process. (Seen: 3 on a quiet machine.)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def pair(folder):
    """pair(kind): the folder of an undisturbed run of two processes."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = crew.finished(folder, f"{kind}-pair", kind, 2)
        return made[kind]

    return of


def drawn(out: Path) -> list[tuple[int, ...]]:
    """The tokens of all samples that were trained on or judged."""
    files = sorted((out / "records").rglob("rollouts.jsonl"))
    files += sorted((out / "records" / "online").glob("*.jsonl"))
    rows = [row for file in files for row in read_records(file, Scored)]
    return [rollout.token_ids for row in rows for rollout in row.rollouts]


@pytest.mark.parametrize("kind", ["dpo", pytest.param("grpo", marks=pytest.mark.full)])
def test_a_pair_does_what_one_process_does(folder, pair, kind):
    """The supervised stage, then rounds of DPO or online GRPO."""
    one, two = folder / f"{kind}-one", pair(kind)
    assert loop_run.run(replace(small.get_config(kind), out=str(one))) == 0
    assert drawn(one) == drawn(two)
    assert len(drawn(one)) == SAMPLED[kind]
    lines = zip(read_metrics(one), read_metrics(two), strict=True)
    for a, b in ((comparable(a), comparable(b)) for a, b in lines):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if not isinstance(value, float):
                assert b[name] == value, (name, a["step"])
                continue
            close = math.isclose(b[name], value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
            assert close, (name, a["step"], value, b[name])
    account = [line for line in read_metrics(two) if "perf/goodput" in line][-1]
    spent = {
        n: x for n, x in account.items() if n.startswith("perf/") and n[-2:] == "_s"
    }
    for name in ("productive", "compiling", "checkpoint", "waiting", "loading"):
        assert spent[f"perf/{name}_s"] > 0, name
    share = spent["perf/productive_s"] / sum(spent.values())
    assert account["perf/goodput"] == pytest.approx(share)


@pytest.mark.full
def test_a_pair_that_is_stopped_ends_with_the_same_bits(folder, pair):
    """SIGTERM to both saves the same step."""
    name, kind = "dpo-stopped", "dpo"
    stopped = crew.train(folder, name, kind, 2, ends="0,1 15 2")
    assert stopped.codes == [143, 143], "\n".join(stopped.logs)
    assert "stopped; the same command goes on" in stopped.logs[0]
    crew.finished(folder, name, kind, 2)
    killed.assert_same(killed.contents(pair(kind)), killed.contents(folder / name))


@pytest.mark.full
@pytest.mark.parametrize("ends", ["1 9 2", "0 9 3", "1 15 2", "0 15 4"])
def test_whichever_process_is_hit(folder, pair, ends):
    """SIGKILL of either ends both, with the code that says to try again (jax's
    coordinator is in the first); so does SIGTERM to one alone, with all saved. The next
    start ends as a pair that nobody disturbed."""
    who, number, _ = ends.split()
    name = f"grpo-{ends.replace(' ', '-')}"
    hit = crew.train(folder, name, "grpo", 2, ends=ends)
    code = 75 if number == "9" else 143
    assert hit.codes == [code, code], "\n".join(hit.logs)
    if number == "9":
        at = re.search(r"in process \d at ([\d.]+)", hit.logs[int(who)])
        assert at is not None
        assert time.time() - float(at[1]) < END_SECONDS
        assert f"process {who} (" in hit.logs[1 - int(who)]
        assert "was lost: the job ends with exit code 75" in hit.logs[1 - int(who)]
    crew.finished(folder, name, "grpo", 2)
    killed.assert_same(killed.contents(pair("grpo")), killed.contents(folder / name))
