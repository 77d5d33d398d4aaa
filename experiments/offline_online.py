"""Claim (c): offline is worst, semi-online is as good as online.

python experiments/offline_online.py [--seeds 3] [--write]
"""

from claim import Arm, Claim, Column, accuracy, first, last, main

LENGTH = "eval/completions/mean_length"
CLAIM = Claim(
    name="Offline, semi-online, online",
    paper=(
        "Bridging offline and online (arXiv 2506.21495): DPO on samples of the first "
        "model stays behind; samples that are up to 10 updates old are as good as "
        "fresh ones; with fresh samples and a reference that is never renewed, answers "
        "to verifiable questions degenerate in length."
    ),
    arms=(
        Arm("offline", "online_dpo.py:tiny-offline"),
        Arm("semi-online, s = 10", "online_dpo.py:tiny-semi"),
        Arm("online", "online_dpo.py:tiny"),
        Arm(
            "online, first reference",
            "online_dpo.py:tiny",
            ("recipe.schedule.sync_reference_every=0",),
        ),
    ),
    columns=(
        *accuracy(),
        Column("tokens, before", first(LENGTH)),
        Column("tokens, after", last(LENGTH)),
    ),
    seen=(
        "Half reproduced. Fresh samples are best by far; samples that are up to 10 "
        "updates old are no better than the first model's here, where 30 updates "
        "renew them three times only. Lengths do not degenerate without a new "
        "reference: answers end where the form ends."
    ),
)

if __name__ == "__main__":
    main(CLAIM, __file__)
