"""Claim (k): a judge gets better by its own judgements, without labels from people.

python experiments/self_taught.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, first, last, main

WORLDS = ("data.train", "data.test")
BOTH, FLIPS = "eval/consistent_accuracy", "eval/flips"
CLAIM = Claim(
    name="A judge that teaches itself",
    paper=(
        "Self-Taught Evaluators (arXiv 2408.02666): fine-tuned on its own judgements "
        "of pairs in which one answer is worse by construction, a judge gets better "
        "round after round."
    ),
    arms=(Arm("three rounds", "self_taught.py:tiny", worlds=WORLDS),),
    columns=(
        *accuracy("right, %"),
        Column("right in both orders, %, before", first(BOTH, scale=100)),
        Column("right in both orders, %, after", last(BOTH, scale=100)),
        Column("flips, %, before", first(FLIPS, scale=100)),
        Column("flips, %, after", last(FLIPS, scale=100)),
    ),
    start=Arm("start", "self_taught.py:tiny", worlds=WORLDS),
    seen=(
        "Half reproduced. Verdicts in both orders get better with two of the three "
        "seeds (by 10 and 16 points; one loses 1), most of it in the first round, and"
        " flips fall; single verdicts hardly move (by -1, 2 and 3 points). A judge "
        "that is right little more often than chance keeps few judgements that are "
        "right for the reason given, so that there is little to learn from: most "
        "likely the paper's 70B judge, far from chance at the start, is what is "
        "missing here."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
