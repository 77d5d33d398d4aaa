"""The one exception of the configuration: everything that is wrong, in one message."""

from collections.abc import Sequence


class ConfigError(ValueError):
    """What the user has to mend, complete: one entry of `problems` for each mistake.

    The command line prints it without a traceback and exits with 2.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        assert self.problems, "an error without a problem"
        super().__init__("\n".join(self.problems))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = [f"{len(self.problems)} problems:"]
        for problem in self.problems:
            lines.append("- " + problem.replace("\n", "\n  "))
        return "\n".join(lines)
