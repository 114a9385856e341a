"""TPU pods by name: their devices, described by the TPU compiler without any TPU.

A name is a generation and a grid of chips: `v3:16x16` is v3-512, `v3:16x32` v3-1024.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.process.platforms import expect_no_tpu
from protlm_jax.training.hardware import memory_of

# What the compiler needs beside the grid. A JAX device of v4 is a chip, whose two cores are fused.
GENERATIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("v2", "v3")},
    "v4": {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
    **{name: {} for name in ("v5e", "v5p", "v6e")},
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A pod, or several."""

    name: str  # such as "v3:16x16", or "2 x v3:16x16" of two slices
    devices: list[Any]  # descriptions of JAX devices, for which a program can be compiled
    hbm: int  # bytes of one device
    slices: int = 1  # pods joined by the data center's network

    @property
    def generation(self) -> str:
        return self.name.split()[-1].partition(":")[0]


def topology(name: str, slices: int = 1) -> Topology:
    """`slices` pods; ProtlmError where libtpu is not installed or there is no such pod."""
    generation, _, grid = name.partition(":")
    if generation not in GENERATIONS or not all(
        size.isdecimal() and int(size) for size in grid.split("x")
    ):
        raise ProtlmError(
            f"topology {name!r} is not known: a generation of {', '.join(GENERATIONS)} and the "
            f"grid of its chips, such as v3:16x16 (v3-512), v3:16x32 (v3-1024) or v4:4x4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ProtlmError(
            "planning needs the TPU compiler, which is not installed (no TPU is needed): "
            "pip install 'protlm-jax[plan]'"
        )
    from jax.experimental import topologies

    expect_no_tpu()
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=name, num_slices=slices, **GENERATIONS[generation]
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ProtlmError(f"topology {name!r}: {error}") from error
    full = f"{slices} x {name}" if slices > 1 else name
    return Topology(full, list(devices), memory_of(devices[0]), slices)
