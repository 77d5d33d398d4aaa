"""How sure a measured share is."""

from math import sqrt

Z = 1.959963984540054  # of a 95 % interval


def wilson_interval(successes: float, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927); (0, 1) where nothing was
    counted.

    Unlike mean ± 1.96 standard errors it stays inside [0, 1] and has a width at 0 and
    1 too. Halves (ties) may be among the successes; it is then somewhat wide.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} are no share")
    if total == 0:
        return 0.0, 1.0
    share, width = successes / total, Z * Z / total
    center = share + width / 2
    spread = Z * sqrt(share * (1 - share) / total + width / (4 * total))
    low, high = (center - spread) / (1 + width), (center + spread) / (1 + width)
    return max(low, 0.0), min(high, 1.0)
