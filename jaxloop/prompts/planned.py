"""CoT-Self-Instruct: think about what makes the seeds what they are, plan, write."""

from dataclasses import dataclass, field

from jaxloop.prompts.maker import Maker, Parse, Tags
from jaxloop.sampling.settings import Sampling

_INTRODUCTION = """\
You write {kind} for training a language model. Here are some that serve as examples:

{{seeds}}Make a new one in three steps.
1. Reason about the examples: which field they are from, what they demand of whoever
answers, how hard they are, what somebody would want with them.
2. Plan one that is of the same kind and at least as demanding, but neither a variation
of an example nor their combination. Say what it will turn on.
3. {last}
"""
PROBLEM = _INTRODUCTION.format(
    kind="problems",
    last="""Write the problem, complete in itself and with exactly one answer that can
be checked: a number, an expression, or a few words. Solve it with care. If it turns out
wrong or ambiguous, change it and solve it again.

End with both, each between its tags, which stand nowhere else in your text; the answer
alone, without its working:
<problem>the problem</problem>
<answer>the final answer</answer>""",
)
INSTRUCTION = _INTRODUCTION.format(
    kind="requests to an assistant",
    last="""Write the request as somebody would who means it, complete in itself, with
all that a good answer needs to know.

End with the request between its tags, which stand nowhere else in your text:
<request>the request</request>""",
)


def problems_in_text() -> Tags:
    """The parser that belongs to `PROBLEM`."""
    return Tags("problem", ("answer",))


@dataclass(frozen=True)
class Planned(Maker):
    """A plan from two seeds, then a prompt, with its answer where one can be checked.

    Yu et al. 2025 (arXiv 2507.23751). As it stands it writes problems with answers; for
    requests without one set `template=INSTRUCTION, parse=Tags()`. The words, the
    sampling, and the filter by words, which looks for repetitions here, are our own.
    """

    template: str = PROBLEM
    example: str = "Example {number}:\n{text}\n\n"
    parse: Parse = field(default_factory=problems_in_text)
    sampling: Sampling = field(
        default_factory=lambda: Sampling(
            n=1, temperature=0.7, top_p=0.9, max_new_tokens=2048
        )
    )
