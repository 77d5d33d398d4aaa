"""Claim (a): the likelihood term of IRPO keeps the chosen answers likely.

python experiments/irpo_nll.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, last, main

BETA = 0.1
CLAIM = Claim(
    name="IRPO needs its likelihood term",
    paper=(
        "IRPO (arXiv 2404.19733): offline, without the likelihood of the chosen answer "
        "in the loss, chosen answers lose probability and accuracy is lower."
    ),
    arms=(
        Arm("with likelihood", "irpo.py:tiny"),
        Arm("without", "irpo.py:tiny", ("recipe.objective.nll=0",)),
    ),
    columns=(
        *accuracy(),
        Column(
            "log-probability of the chosen against the round's start, nats",
            last("rewards/chosen", scale=1 / BETA),
        ),
    ),
    seen=(
        "Not reproduced. Accuracy is lower without the term, by less than the spread "
        "of the seeds, and chosen answers do not lose probability: most likely since "
        "at this size the two sides of a pair hardly share tokens beyond the first, "
        "so that pushing one down leaves the other be."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
