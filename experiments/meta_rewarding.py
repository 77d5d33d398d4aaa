"""Claim (f): pairs of judgements make the judge better, length control keeps length.

python experiments/meta_rewarding.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, first, last, main

LENGTH = "eval/completions/mean_length"
CLAIM = Claim(
    name="A judge that is judged",
    paper=(
        "Meta-Rewarding (arXiv 2407.19594): trained on pairs of its judgements as "
        "well, a model judges better than by pairs of answers alone; with the shortest "
        "of the best chosen, its answers do not drift to greater length."
    ),
    arms=(
        Arm("answers alone", "meta_rewarding.py:tiny-actor"),
        Arm("and judgements", "meta_rewarding.py:tiny"),
        Arm("and length control", "meta_rewarding.py:tiny-length"),
    ),
    columns=(
        *accuracy("answers, %"),
        *accuracy("verdicts, %", "verdicts"),
        Column("tokens, before", first(LENGTH)),
        Column("tokens, after", last(LENGTH)),
    ),
    start=Arm("start", "meta_rewarding.py:tiny"),
    seen=(
        "Half reproduced. The shortest of the best against the longest of the worst "
        "does hold length: shorter than best against worst on every seed. But of "
        "these sums the right answers are the long, worked ones, so it costs "
        "accuracy: 46 and 32 points on two seeds, 3 to 5 on the others. The judge of "
        "the second half shows little: on the seed with the worst judge pairs of "
        "judgements take it from 76 to 78 % where answers alone take it to 73; the "
        "others begin at 85 to 98 % and move by two points at most, either way. Nor "
        "did it with half of the judge's demonstrations (three seeds, not in the "
        "table: 81.5 to 81.6 %, 80.6 for answers alone). Most likely a verdict of one"
        " bit, on a sum that the model can redo, leaves a meta-judge little to add."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
