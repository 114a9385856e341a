"""Published figures of TPU chips.

Peak, HBM bandwidth and the number of matrix units: Google's documentation of each generation (Cloud
TPU, "System architecture"), of v2 Jouppi et al. 2020, "A domain-specific supercomputer for training
deep neural networks". The clock is the one at which the documented matrix units (128 x 128, two
operations a cycle in each cell) reach the documented peak; it agrees with the 700, 940 and 1050 MHz
of Jouppi et al. 2021, "Ten lessons from three generations".

A link of the interconnect (ICI), one way: of v2 496 Gbit/s (Jouppi et al. 2020); of v3 and v4 the
documented all-reduce bandwidth of a pod (340 TB/s, 1.1 PB/s) over its chips and links; of v5e, v5p
and v6e half the documented bidirectional bandwidth of a chip over its links. Each hop takes 1 us, a
host speaks to the data centre's network (DCN) with 25 GB/s, and an axis that is shorter than the
pod's is a line, not a ring (v4 and v5p: unless a multiple of 4): Austin et al. 2025, "How to scale
your model", chapters 2, 3 and 5.

No figure is fitted to a measured run.
"""

from __future__ import annotations

import dataclasses

HOP_SECONDS = 1e-6
DCN_BYTES = 25e9  # of one host, per second


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; of v2 to v4 it is two JAX devices, a core each, unless they are fused.

    Attributes:
        peak: operations per second of products in bfloat16.
        clock: cycles per second.
        hbm: bytes per second.
        link: bytes per second over one link of the interconnect, one way.
        ring: length from which an axis of the torus closes to a ring.
        cubes: whether every multiple of `ring` does, too.
    """

    peak: float
    clock: float
    hbm: float
    link: float
    ring: int
    cubes: bool = False

    def closes(self, length: int) -> bool:
        """Whether an axis of so many chips is a ring."""
        return length % self.ring == 0 if self.cubes else length >= self.ring


CHIPS = {
    "v2": Chip(peak=46e12, clock=702e6, hbm=700e9, link=62e9, ring=16),
    "v3": Chip(peak=123e12, clock=938e6, hbm=900e9, link=83e9, ring=32),
    "v4": Chip(peak=275e12, clock=1049e6, hbm=1200e9, link=45e9, ring=4, cubes=True),
    "v5e": Chip(peak=197e12, clock=1503e6, hbm=819e9, link=50e9, ring=16),
    "v5p": Chip(peak=459e12, clock=1751e6, hbm=2765e9, link=100e9, ring=4, cubes=True),
    "v6e": Chip(peak=918e12, clock=1751e6, hbm=1638e9, link=100e9, ring=16),
}
