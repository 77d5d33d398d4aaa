"""`configs/irpo.py` and `configs/gsm8k_grpo.py` with a reward that a toy can earn.

    jaxloop run tests/real/form.py:irpo model.path=DIR data.train=... data.test=...
    jaxloop run tests/real/form.py:grpo model.path=DIR data.train=... data.test=...

A model of two layers does not solve GSM8K: under the gold answer alone nearly all
samples score 0, and neither pairs nor advantages exist. Here a solution is worth 0.6 if
it has the form of the data within the length allowed (a sum worked out between << and
>>, then `#### ` and a number at the end), and 0.4 if the number is the right one.
"""

from dataclasses import replace

from configs import gsm8k_grpo, irpo
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.scoring import GSM8K, Format, Sum

CONFIGS = {"irpo": irpo, "grpo": gsm8k_grpo}
FORM = Format(r"<<[0-9.+*/-]+=[0-9.]+>>.*#### -?[0-9.,]+$")
SCORER = Sum((FORM, GSM8K()), weights=(0.6, 0.4))


def get_config(variant: str | None = None) -> Config:
    if variant not in CONFIGS:
        raise unknown_variant(variant, CONFIGS)
    base = CONFIGS[variant].get_config()
    assert base.recipe is not None
    return replace(
        base,
        recipe=replace(base.recipe, scorer=SCORER),
        evaluation=replace(base.evaluation, scorer=SCORER),
    )
