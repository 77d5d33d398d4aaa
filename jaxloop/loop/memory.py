"""Out of memory: what was going on, and three settings that would make room."""

from collections.abc import Iterator

import jax

from jaxloop.config import apply_overrides
from jaxloop.config.errors import ConfigError
from jaxloop.experiment import Config
from jaxloop.loop.folder import may_change
from jaxloop.models.decoder import ModelShape

NEW = "; only in a new folder: out=DIR"
SUPERVISED = "supervised training"
UPDATING = (SUPERVISED, "training", "online", "reference")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had not the bytes that a program or a transfer wanted."""
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in str(error)
    )


def advice(config: Config, shape: ModelShape, phase: str, devices: int) -> list[str]:
    """Three settings, as the command line takes them, each with what it costs.

    All would pass the config's checks as they stand; the most useful one for the phase
    (as `Progress.phase` has it) is first.
    """
    known = len(config.problems(shape, devices))
    found = []
    for setting, cost in _settings(config, phase, devices):
        try:
            changed = apply_overrides(config, [setting])
        except ConfigError:
            continue
        if changed != config and len(changed.problems(shape, devices)) <= known:
            here = may_change(setting.partition("=")[0])
            found.append(f"{setting} ({cost}{'' if here else NEW})")
    return found[:3]


def _settings(config: Config, phase: str, devices: int) -> Iterator[tuple[str, str]]:
    """More than are needed: what does not fit is passed over."""
    if phase in UPDATING:
        yield from _updates(config, phase)
        yield from _samples(config)
    else:
        yield from _samples(config)
        yield from _updates(config, "training")
    if devices > 1:
        yield f"mesh.fsdp={devices}", "parameters and optimiser cut over all devices"
        yield "mesh.tensor=2", "each matrix cut in two; more communication"
    yield "model.param_dtype=bfloat16", "parameters in half of the bytes; coarser steps"
    if config.model.path:
        yield "model.path=SMALLER_MODEL", "there is nothing else left to reduce"


def _updates(config: Config, phase: str) -> Iterator[tuple[str, str]]:
    stages = {"sft": config.sft, "offline": config.offline}
    if config.recipe is not None:
        stages["recipe.schedule"] = config.recipe.schedule
    for name, stage in stages.items():
        if stage is not None and (name == "sft") == (phase == SUPERVISED):
            parts = 2 * stage.accumulation
            yield f"{name}.accumulation={parts}", "same update in smaller parts; slower"
    yield "model.remat=full", "the backward pass computes more again"


def _samples(config: Config) -> Iterator[tuple[str, str]]:
    if config.recipe is not None:
        sampling, name = config.recipe.sampling, "recipe.sampling"
        halves = f"{name}.rows={max(sampling.rows // 2, 1)}"
        yield halves, "half as many completions at once; slower"
        yield (
            f"{name}.prefill_rows={max(sampling.prefill_rows // 2, 1)}",
            ("half as many prompts at once"),
        )
        shorter = f"{name}.max_new_tokens={max(sampling.max_new_tokens // 2, 1)}"
        yield shorter, "long answers are cut"


def report(config: Config, shape: ModelShape, phase: str, error: Exception) -> str:
    """What the user is told: the phase, the bytes as jax says them, three settings."""
    reason = str(error).partition("RESOURCE_EXHAUSTED:")[2].strip().splitlines()
    used = [
        f"{device}: {stats['bytes_in_use'] / 2**30:.2f} of "
        f"{stats['bytes_limit'] / 2**30:.2f} GiB in use"
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "bytes_limit" in stats
    ]
    knobs = advice(config, shape, phase, len(jax.devices()))
    lines = [
        f"out of memory while {phase or 'loading'}: {reason[0] if reason else error}",
        *used,
        "Nothing that was saved is lost. The same command goes on with any of these:",
        *(f"  {knob}" for knob in knobs),
        "`--dry-run` prints the bytes that the settings hold on each device.",
    ]
    return "\n".join(lines)
