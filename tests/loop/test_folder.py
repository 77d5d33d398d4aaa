"""Which settings a run may be continued with."""

import pytest

from configs import quickstart
from jaxloop.config import ConfigError, apply_overrides
from jaxloop.loop.folder import RunFolder, may_change

CONFIG = quickstart.get_config()


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("out", True),
        ("checkpoint.keep", True),
        ("hang_minutes", True),
        ("mesh.fsdp", True),
        ("model.remat", True),
        ("sft.accumulation", True),
        ("recipe.schedule.accumulation", True),
        ("recipe.sampling.rows", True),
        ("evaluation.sampling.prefill_rows", True),
        ("recipe.sampling.max_new_tokens", False),
        ("recipe.schedule.batch_size", False),
        ("sft.row_tokens", False),
        ("model.dtype", False),
        ("seed", False),
        ("checkpoints", False),
        ("data.output", False),
    ],
)
def test_what_may_change(name, may):
    assert may_change(name) == may


def test_another_run_is_refused_and_other_pieces_are_noted(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(CONFIG, [])
    assert folder.check(CONFIG) == []
    shown = folder.check(apply_overrides(CONFIG, ["tensorboard=false"]))
    assert len(shown) == 1
    pieces = apply_overrides(CONFIG, ["sft.accumulation=2", "mesh.fsdp=2"])
    change, rounding = folder.check(pieces)
    assert "sft.accumulation" in change
    assert "mesh.fsdp" in change
    assert "last bits" in rounding
    other = apply_overrides(pieces, ["seed=7"])
    with pytest.raises(ConfigError, match=r"another configuration:(.|\n)*seed"):
        folder.check(other)
