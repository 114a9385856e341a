"""TPU pods by name: their devices, described by the TPU compiler without any TPU.

A name is a generation and the shape of its grid of chips: `v3:16x16` is the pod called v3-512,
`v3:16x32` v3-1024. v2 to v4 have two cores per chip, and one JAX device per core.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from typing import Any

import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.platforms import expect_no_tpu

# HBM of one JAX device in bytes. v3: what the compiler lets a program have, of 16 GiB; the others:
# as published, of which a program gets a little less.
HBM = {
    "v2": 8 * 2**30,
    "v3": 15.48 * 2**30,
    "v4": 16 * 2**30,
    "v5e": 16 * 2**30,
    "v5p": 95 * 2**30,
    "v6e": 32 * 2**30,
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A pod.

    Attributes:
        name: such as "v3:16x16".
        devices: descriptions of its JAX devices, for which a program can be compiled.
        hbm: bytes of one device.
    """

    name: str
    devices: list[Any]
    hbm: int


def topology(name: str) -> Topology:
    """Describes a pod.

    Args:
        name: generation (v2, v3, v4, v5e, v5p, v6e), a colon, and the grid of chips.

    Raises:
        ProtlmError: libtpu is not installed, or there is no such pod.
    """
    generation, _, grid = name.partition(":")
    sizes = grid.split("x")
    if generation not in HBM or not all(size.isdecimal() and int(size) for size in sizes):
        raise ProtlmError(
            f"topology {name!r} is not known: a generation of {', '.join(HBM)} and the grid of its "
            f"chips, such as v3:16x16 (v3-512), v3:16x32 (v3-1024) or v4:4x4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ProtlmError(
            "planning needs the TPU compiler, which is not installed (no TPU is needed): "
            "pip install 'protlm-jax[plan]'"
        )
    from jax.experimental import topologies

    expect_no_tpu()
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ProtlmError(f"topology {name!r}: {error}") from error
    return Topology(name, list(devices), math.floor(HBM[generation]))
