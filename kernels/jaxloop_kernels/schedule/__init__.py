"""Static cost of a TPU kernel from the TPU's own compiler, on any machine.

    from jaxloop_kernels.schedule import measure

    cost = measure("v6e", my_kernel, jax.ShapeDtypeStruct((8, 2048, 128), "bfloat16"))
    cost.cycles, cost.kernels[0].slots, cost.kernels[0].spills

libtpu compiles for chips that are not there and writes down what each of its bundles
does. `bundles` reads that, `steps` finds how often a kernel's conditional parts run,
`cost` multiplies. It is no timing: memory is taken to be in time.
"""

from jaxloop_kernels.schedule.compiler import (
    TOPOLOGIES,
    VMEM,
    compile_for,
    has_libtpu,
    prepare,
    tracing_for,
)
from jaxloop_kernels.schedule.cost import Cost, Kernel, Part, UnknownCount, measure

__all__ = [
    "TOPOLOGIES",
    "VMEM",
    "Cost",
    "Kernel",
    "Part",
    "UnknownCount",
    "compile_for",
    "has_libtpu",
    "measure",
    "prepare",
    "tracing_for",
]
