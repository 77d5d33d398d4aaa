"""Claim (h): pairs under a limit teach to keep to it, at no loss elsewhere.

python experiments/lift_limits.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, first, last, main

OVER = "eval/limits/violations"
CLAIM = Claim(
    name="Answers that keep to a length",
    paper=(
        "LIFT-DPO (arXiv 2406.17744): with each pair once more under a limit of words, "
        "violations fall several-fold, and answers without a limit lose nothing."
    ),
    arms=(
        Arm("with limits", "lift_dpo.py:tiny"),
        Arm("the pairs alone", "lift_dpo.py:tiny-plain"),
    ),
    columns=(
        Column("violations, %, before", first(OVER, scale=100)),
        Column("violations, %, after", last(OVER, scale=100)),
        *accuracy("accuracy without a limit, %"),
        *accuracy("accuracy with a limit, %", "limits"),
    ),
    start=Arm("start", "lift_dpo.py:tiny"),
    seen=(
        "Not reproduced. Beside the pairs alone violations are fewer with two of the "
        "three seeds (34 against 56 %, 48 against 73 %) and the same with the third, "
        "where the first model never answers briefly; beside the model before they "
        "fall with one seed only, and by a third, not several-fold. Both arms lose "
        "accuracy, about five points. Most likely the short answer must be in the "
        "model's repertoire before pairs can prefer it: here the supervised stage "
        "leaves little of it, and pairs push away the long answer without a short one"
        " to push to."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
