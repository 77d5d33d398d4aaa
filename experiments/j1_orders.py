"""Claim (l): a reward for both orders at once cuts flips.

python experiments/j1_orders.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, first, last, main

WORLDS = ("data.train", "data.test")
BOTH, FLIPS = "eval/consistent_accuracy", "eval/flips"
CLAIM = Claim(
    name="A judge that keeps to its verdict",
    paper=(
        "J1 (arXiv 2505.10320): a judge that is rewarded only where it is right in "
        "both orders changes its verdict with the order less often, and is right in "
        "both more often, than one that is rewarded for each order by itself."
    ),
    arms=(
        Arm("both orders", "j1.py:tiny", worlds=WORLDS),
        Arm("each by itself", "j1.py:tiny-plain", worlds=WORLDS),
    ),
    columns=(
        Column("flips, %, before", first(FLIPS, scale=100)),
        Column("flips, %, after", last(FLIPS, scale=100)),
        Column("right in both, %, before", first(BOTH, scale=100)),
        Column("right in both, %, after", last(BOTH, scale=100)),
    ),
    start=Arm("start", "j1.py:tiny", worlds=WORLDS),
    seen=(
        "Reproduced. With each of the three seeds the judge that is rewarded only "
        "where it is right in both orders flips less (by 16, 19 and 5 points) and is "
        "right in both more often (by 13, 8 and 6). On single verdicts the two are "
        "nearly alike (62 and 60 % right)."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
