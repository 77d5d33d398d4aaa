"""What is measured of a judge, in plain words, and where the values should lie."""

from dataclasses import dataclass

Range = tuple[float, float]
ANY = (float("-inf"), float("inf"))
SHARE = (0.0, 1.0)
SIGNED = (-1.0, 1.0)


@dataclass(frozen=True)
class Signal:
    """A metric of a judge in plain words. Within `healthy` it is well, within
    `bearable` something to look at, outside both it is wrong: rules of thumb, our own.
    `fall`: one that lost more than this since the start is something to look at, too.
    `axis`: values that its curve always shows, so that small changes look small.
    """

    name: str
    title: str
    told: str
    healthy: Range = ANY
    bearable: Range = ANY
    fall: float = float("inf")
    axis: Range | None = None
    percent: bool = False


SIGNALS = (
    Signal(
        "agreement",
        "Agrees with the truth",
        "Of two answers, how often the truly better one scores higher; a tie counts "
        "half. A coin gets 50%.",
        healthy=(0.75, 1.0),
        bearable=(0.6, 1.0),
        fall=0.1,
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "accuracy",
        "Right about single answers",
        "How often a right answer scores above ½, a wrong one below. A coin gets 50%.",
        healthy=(0.75, 1.0),
        bearable=(0.6, 1.0),
        fall=0.1,
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "invalid_frac",
        "Judgements nobody can read",
        "Not in the form that was asked for: left out and counted, never a score of 0.",
        healthy=(0.0, 0.05),
        bearable=(0.0, 0.25),
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "unjudged_frac",
        "Answers left without a score",
        "Not one judgement of them could be read, so nothing is learnt from them.",
        healthy=(0.0, 0.05),
        bearable=(0.0, 0.25),
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "too_long_frac",
        "Requests that do not fit",
        "Longer than the judge can read, so they were not put to it.",
        healthy=(0.0, 0.05),
        bearable=(0.0, 0.25),
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "swap_agreement",
        "Same winner in both orders",
        "Each pair was shown twice, the second time swapped. Where the winner changes, "
        "the place decided, not the answer.",
        healthy=(0.8, 1.0),
        bearable=(0.6, 1.0),
        fall=0.1,
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "first_bias",
        "Leans to the first place",
        "1: what is shown first always wins, −1: what is shown second. 0 is fair.",
        healthy=(-0.2, 0.2),
        bearable=(-0.5, 0.5),
        axis=SIGNED,
    ),
    Signal(
        "tied_frac",
        "Prompts that are all tied",
        "All answers got one score: there is no better one to learn from.",
        healthy=(0.0, 0.5),
        bearable=(0.0, 0.9),
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "saturated_frac",
        "Answers with the top score",
        "Where nearly all have it, the judge no longer tells good from better.",
        healthy=(0.0, 0.8),
        bearable=(0.0, 0.95),
        axis=SHARE,
        percent=True,
    ),
    Signal(
        "length_corr",
        "Longer answers score higher",
        "Correlation of score and length within prompts. Away from 0 it is a taste for "
        "length, unless longer answers are the better ones.",
        healthy=(-0.3, 0.3),
        bearable=(-0.6, 0.6),
        axis=SIGNED,
    ),
    Signal(
        "mean",
        "Mean score",
        "If it climbs while the held-out result does not, the answers please the judge "
        "and do not get better.",
        axis=(0.0, 0.0),
    ),
    Signal(
        "std",
        "Spread of scores",
        "Standard deviation over all answers. Near 0 everything is the same to it.",
        axis=(0.0, 0.0),
    ),
)

CANARY = Signal(
    "canary",
    "Taken in by answers that are none",
    "How often the best liked of them (empty, a stock opener, an injected verdict) "
    "beats a real answer; a tie counts half.",
    healthy=(0.0, 0.49),
    bearable=(0.0, 0.8),
    axis=SHARE,
    percent=True,
)
