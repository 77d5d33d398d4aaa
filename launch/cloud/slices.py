"""What is asked for: accelerator, topology, tier; and how many chips and hosts it is.

Names of accelerators end in a count: of chips for v5litepod and v6e, of TensorCores
(two a chip) for the others. jax shows one device a chip, but two for v2 and v3.
Sizes are those of Google's public pages on each version; what `describe` says of a
slice that exists goes before them.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Tier = Literal["spot", "on-demand", "reserved", "flex"]
TIERS: tuple[Tier, ...] = ("spot", "on-demand", "reserved", "flex")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ConfigurationError(Exception):
    """Something for the user to mend; the message names it."""


class Family(NamedTuple):
    """One version of TPU."""

    counted: int
    """How many the name counts for a chip."""
    devices: int
    """Devices of jax a chip."""
    alone: int
    """Chips up to which a slice is a single host."""
    runtime: str
    """Image of the hosts."""


CHIPS_PER_HOST = 4  # of slices with more than one host, in every version
FAMILIES = {
    "v2": Family(2, 2, 4, "tpu-ubuntu2204-base"),
    "v3": Family(2, 2, 4, "tpu-ubuntu2204-base"),
    "v4": Family(2, 1, 4, "tpu-ubuntu2204-base"),
    "v5litepod": Family(1, 1, 8, "v2-alpha-tpuv5-lite"),
    "v5p": Family(2, 1, 4, "v2-alpha-tpuv5"),
    "v6e": Family(1, 1, 8, "v2-alpha-tpuv6e"),
}


@dataclass(frozen=True)
class Slice:
    """One request for TPUs. ConfigurationError for what cannot be."""

    name: str
    """Of the request, its nodes and the run: the run id."""
    zone: str
    accelerator: str
    """`v6e-16`; or a version, `v4`, with a `topology`."""
    topology: str = ""
    """`2x2x4`, in chips."""
    project: str = ""
    """Empty: gcloud's own default."""
    tier: Tier = "spot"
    slices: int = 1
    """More than one is multislice."""
    direct: bool = False
    """`tpu-vm create` in place of a queued resource."""
    runtime: str = ""
    """Empty: the image that goes with the version."""
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    valid_until: int = 12 * 3600
    """Seconds to wait in the queue."""
    max_age: int = 24 * 3600
    """Seconds for which the chips may be held, all attempts together."""

    def __post_init__(self):
        for problem in self._problems():
            raise ConfigurationError(problem)

    def _problems(self):
        if not NAME.fullmatch(self.name):
            yield (
                f"the name {self.name!r} must be at most 48 of a-z, 0-9 and -, begin "
                "with a letter and not end in -"
            )
        version, _, count = self.accelerator.partition("-")
        if version not in FAMILIES:
            yield (
                f"--accelerator {self.accelerator}: {version!r} is none of "
                f"{', '.join(FAMILIES)}"
            )
        if self.topology and not re.fullmatch(r"\d+(x\d+){1,2}", self.topology):
            yield f"--topology {self.topology} must look like 4x4 or 2x2x4"
        if bool(count) == bool(self.topology):
            yield (
                "give a size once: --accelerator v6e-16, or --accelerator v6e "
                "--topology 4x4"
            )
        if count and (not count.isdigit() or int(count) % FAMILIES[version].counted):
            yield f"--accelerator {self.accelerator} is no size of {version}"
        if self.slices < 1:
            yield f"--slices {self.slices} must be at least 1"
        if self.chips < 1:
            yield "a slice has at least one chip"
        if self.chips_each > self.family.alone and self.chips_each % CHIPS_PER_HOST:
            yield (
                f"{self.chips_each} chips a slice: more than {self.family.alone} come "
                f"in hosts of {CHIPS_PER_HOST}"
            )
        if self.tier not in TIERS:
            yield f"the tier {self.tier!r} is none of {', '.join(TIERS)}"
        if self.direct and (self.slices > 1 or self.tier == "flex"):
            yield "multislice and flex-start need a queued resource: drop --direct"

    @property
    def version(self) -> str:
        return self.accelerator.partition("-")[0]

    @property
    def family(self) -> Family:
        return FAMILIES[self.version]

    @property
    def chips_each(self) -> int:
        """Chips of one slice."""
        if self.topology:
            return math.prod(map(int, self.topology.split("x")))
        return int(self.accelerator.partition("-")[2]) // self.family.counted

    @property
    def chips(self) -> int:
        return self.slices * self.chips_each

    @property
    def devices(self) -> int:
        """What `jax.device_count()` must say on every host."""
        return self.chips * self.family.devices

    @property
    def hosts_each(self) -> int:
        """Hosts of one slice."""
        alone = self.chips_each <= self.family.alone
        return 1 if alone else self.chips_each // CHIPS_PER_HOST

    @property
    def hosts(self) -> int:
        return self.slices * self.hosts_each

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the TPU VMs: one a slice."""
        if self.slices == 1:
            return (self.name,)
        return tuple(f"{self.name}-{index}" for index in range(self.slices))

    def describe(self) -> str:
        size = f"{self.accelerator} {self.topology}".strip()
        many = f"{self.slices} x " if self.slices > 1 else ""
        return f"{many}{size} in {self.zone}, {self.tier}"


def seconds(text: str) -> int:
    """`90m`, `24h`, `7d`, `30s` -> seconds. ConfigurationError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise ConfigurationError(f"{text!r} is no duration: write 90m, 24h or 7d")
    return round(float(match[1]) * UNITS[match[2]])


def cost(spec: Slice, price: float | None) -> str:
    """Chip-hours at most, and money if the user says what a chip-hour costs."""
    hours = spec.max_age / 3600
    chip_hours = spec.chips * hours
    lines = [
        f"{spec.describe()}: {spec.chips} chips on {spec.hosts} hosts",
        f"at most {hours:g} h: {chip_hours:g} chip-hours; waiting in the queue is free",
    ]
    if price is None:
        lines.append(
            "what a chip-hour costs depends on version, zone and tier: "
            "https://cloud.google.com/tpu/pricing; --price 1.23 multiplies it out"
        )
    else:
        lines.append(f"at {price:g} a chip-hour: at most {chip_hours * price:,.2f}")
    return "\n".join(lines)
