"""TPU pods by name: their devices, described by the TPU compiler without any TPU.

A name is a generation and the shape of its grid of chips: `v3:16x16` is the pod called v3-512,
`v3:16x32` v3-1024. v2 to v4 have two cores per chip, and one JAX device per core.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.process.platforms import expect_no_tpu
from protlm_jax.training.mesh_choice import memory_of

# What the compiler has to be told of each generation beside the grid. A JAX device of v4 is a chip,
# whose two cores work as one.
GENERATIONS: dict[str, dict[str, Any]] = {
    "v2": {},
    "v3": {},
    "v4": {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
    "v5e": {},
    "v5p": {},
    "v6e": {},
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A pod, or several.

    Attributes:
        name: such as "v3:16x16", or "2 x v3:16x16" of two slices.
        devices: descriptions of its JAX devices, for which a program can be compiled.
        hbm: bytes of one device.
        slices: pods, joined by the network of the data center.
    """

    name: str
    devices: list[Any]
    hbm: int
    slices: int = 1

    @property
    def generation(self) -> str:
        """Such as "v3"."""
        return self.name.split()[-1].partition(":")[0]


def topology(name: str, slices: int = 1) -> Topology:
    """Describes a pod.

    Args:
        name: generation (v2, v3, v4, v5e, v5p, v6e), a colon, and the grid of chips.
        slices: how many of them there are.

    Raises:
        ProtlmError: libtpu is not installed, or there is no such pod.
    """
    generation, _, grid = name.partition(":")
    sizes = grid.split("x")
    if generation not in GENERATIONS or not all(s.isdecimal() and int(s) for s in sizes):
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
