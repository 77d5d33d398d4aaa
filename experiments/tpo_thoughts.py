"""Claim (g): thinking hurts at first and wins after training.

python experiments/tpo_thoughts.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, first, last, main

LENGTH = "eval/completions/mean_length"
CLAIM = Claim(
    name="Thinking that nobody judges",
    paper=(
        "TPO (arXiv 2410.10630): asked to think first, a model answers worse at first; "
        "after preferences by a judge that sees responses alone it answers better than "
        "one that was trained alike without thoughts."
    ),
    arms=(
        Arm("after a thought", "tpo.py:tiny"),
        Arm("at once", "tpo.py:tiny-direct"),
    ),
    columns=(
        *accuracy(),
        Column("tokens, before", first(LENGTH)),
        Column("tokens, after", last(LENGTH)),
    ),
    start=Arm("start", "tpo.py:tiny"),
    seen=(
        "Reproduced. Answering after a thought is far worse at first (37 against 94 "
        "%), and ends ahead of answering at once with each of the three seeds (by 5, "
        "4 and 2 points), in the best round by one point each. What a thought buys "
        "here is the working of a sum, which the supervised stage has shown badly; a "
        "model that answers at once has no room for it."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
