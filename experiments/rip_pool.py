"""Claim (i): a filtered part of a noisy pool teaches more than the pool.

python experiments/rip_pool.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, last, main

CLAIM = Claim(
    name="Prompts worth training on",
    paper=(
        "R.I.P. (arXiv 2501.18578): prompts whose rejected answers are good, long and "
        "near the chosen ones, a quarter of a noisy pool, teach more than the pool."
    ),
    arms=(
        Arm("kept by R.I.P.", "rip.py:tiny"),
        Arm("as many of the pool", "rip.py:tiny-unfiltered"),
        Arm(
            "the whole pool",
            "rip.py:tiny-unfiltered",
            ("recipe.schedule.prompts=1024",),
        ),
    ),
    start=Arm("start", "rip.py:tiny"),
    columns=(*accuracy(), Column("pairs", last("pairs/count"), ".0f")),
    seen=(
        "Half reproduced. One in nine of the kept pairs comes from a garbled sum, of "
        "the pool's one in two, and the kept ones teach more than as many of the pool"
        " with each of the three seeds, by 20, 3 and 6 points. But they do not teach "
        "more than the whole pool, as the paper's quarter does: most likely since "
        "four times the pairs are four times the updates at the same rate, and since "
        "pairs of garbled sums, which nothing in the prompt decides, waste updates "
        "rather than mislead."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
