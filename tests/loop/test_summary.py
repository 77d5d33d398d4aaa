"""What a run says at its end."""

import pytest

from jaxloop.loop.summary import summary_text


def text(*values: float, tmp_path) -> list[str]:
    accuracy = {f"round {number}": value for number, value in enumerate(values)}
    summary = {"accuracy": accuracy, "samples": [], "steps": 3, "seconds": 1.0}
    return summary_text(summary, tmp_path).splitlines()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.25, 1.0), ["held-out accuracy", "before 25.0 %", "at the end 100.0 %"]),
        ((0.9, 3.25), ["held-out score", "before 0.9", "at the end 3.25"]),
        ((-1.5, 0.5), ["held-out score", "before -1.5", "at the end 0.5"]),
        ((), []),
    ],
)
def test_points_are_no_shares(values, said, tmp_path):
    *lines, updates, report = text(*values, tmp_path=tmp_path)
    assert [" ".join(line.split()) for line in lines] == said
    assert updates == "3 updates in 1.0 s"
    assert report == f"report: {tmp_path / 'report.html'}"
