"""Claim (e): a model that judges itself gets better, and its judge does.

python experiments/self_rewarding.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, last, main

CLAIM = Claim(
    name="A model that judges itself",
    paper=(
        "Self-rewarding language models (arXiv 2401.10020): trained by its own "
        "judgements, a model answers better round after round, and judges better too."
    ),
    arms=(
        Arm("its own judge", "self_rewarding.py:tiny"),
        Arm("the first model judges", "self_rewarding.py:tiny-frozen"),
        Arm("scores dealt out at random", "self_rewarding.py:tiny-random"),
    ),
    columns=(
        *accuracy("answers, %"),
        *accuracy("verdicts, %", "verdicts"),
        Column("judge's accuracy on its samples, %", last("judge/accuracy", scale=100)),
    ),
    seen=(
        "Half reproduced. Answers get better by the model's own verdicts and not by "
        "random ones. The judge has no room to get better (99 % of held-out verdicts "
        "are right from the start), so a frozen one does as well."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
