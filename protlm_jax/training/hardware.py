"""Published figures of TPU chips and GPUs; no figure is fitted to a measured run.

Peak, HBM bandwidth and matrix units: Google's documentation of each generation, v2 from Jouppi et
al. 2020. Clock: at which the documented matrix units (128 x 128, two operations a cycle per cell)
reach the peak. One-way bandwidth of an interconnect (ICI) link: v2 from Jouppi et al. 2020; v3 and
v4 the documented all-reduce bandwidth of a pod over its chips and links; later ones half the
documented bidirectional bandwidth of a chip over its links. Latency of a hop, bandwidth to the data
center's network (DCN) and when an axis is a ring: Austin et al. 2025, "How to scale your model".
"""

from __future__ import annotations

import dataclasses

import jax

HOP_SECONDS = 1e-6
DCN_BYTES = 25e9  # of one host, per second


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; v2 and v3 chips are two JAX devices, one per core.

    Attributes:
        peak: bfloat16 FLOP/s.
        kinds: what `device_kind` begins with.
        devices: JAX devices per chip.
        memory: GiB of one device that the TPU compiler lets a program use; 0: ask the device.
        clock: cycles per second.
        hbm: bytes per second.
        link: bytes per second of one interconnect link, one way.
        ring: length from which an axis of the torus closes to a ring.
        cubes: whether every multiple of `ring` does, too.
    """

    peak: float
    kinds: tuple[str, ...] = ()
    devices: int = 1
    memory: float = 0.0
    clock: float = 0.0
    hbm: float = 0.0
    link: float = 0.0
    ring: int = 0
    cubes: bool = False

    def closes(self, length: int) -> bool:
        """Whether an axis of so many chips is a ring."""
        return length % self.ring == 0 if self.cubes else length >= self.ring


CHIPS = {
    "v2": Chip(46e12, ("TPU v2",), 2, 7.48, 702e6, 700e9, 62e9, ring=16),
    "v3": Chip(123e12, ("TPU v3",), 2, 15.48, 938e6, 900e9, 83e9, ring=32),
    "v4": Chip(275e12, ("TPU v4",), 1, 30.75, 1049e6, 1200e9, 45e9, ring=4, cubes=True),
    "v5e": Chip(197e12, ("TPU v5 lite", "TPU v5e"), 1, 15.75, 1503e6, 819e9, 50e9, ring=16),
    "v5p": Chip(459e12, ("TPU v5",), 1, 95.74, 1751e6, 2765e9, 100e9, ring=4, cubes=True),
    "v6e": Chip(918e12, ("TPU v6",), 1, 31.25, 1751e6, 1638e9, 100e9, ring=16),
    "A100": Chip(312e12, ("NVIDIA A100",)),
    "H100": Chip(989e12, ("NVIDIA H100 80GB HBM3",)),
    "H200": Chip(989e12, ("NVIDIA H200",)),
}


def chip_of(device_kind: str) -> Chip | None:
    """The first chip of the table that fits; None for a device that is not in it."""
    return next((chip for chip in CHIPS.values() if device_kind.startswith(chip.kinds)), None)


def peak_flops(device_kind: str) -> float:
    """Peak bfloat16 FLOP/s of one JAX device; 0 where it is not known."""
    chip = chip_of(device_kind)
    return chip.peak / chip.devices if chip else 0.0


def memory_of(device: jax.Device) -> int:
    """Bytes of a device's memory that a program may use; 0 where that is not known."""
    chip = chip_of(device.device_kind)
    if chip and chip.memory:
        return int(chip.memory * 2**30)
    return int((device.memory_stats() or {}).get("bytes_limit", 0))
