"""How long collectives take on the torus of a pod, and between pods.

A collective over a group of chips uses the links of every axis along which the group extends, in
both directions where the group fills a ring, and is bound by the chip that receives the most
(Austin et al. 2025, "How to scale your model", chapter 3). Interleaved groups share the links, and
so do the cores of a chip that are in different groups.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from protlm_jax.training.hardware import DCN_BYTES, HOP_SECONDS, Chip

# Bytes that a chip receives, relative to the whole array.
_RECEIVED = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-reduce": 2.0, "all-to-all": 0.5}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The places of the devices of a mesh, in its order."""

    chip: Chip
    coords: np.ndarray  # [devices, axes] int, the place of each device's chip in its slice
    slices: np.ndarray  # [devices] int, the slice of each
    hosts: np.ndarray  # [devices] int, the host of each

    @classmethod
    def of(cls, chip: Chip, devices: list[Any]) -> Network:
        """From JAX's TPU devices, or descriptions of them, in the order of the mesh."""
        return cls(
            chip,
            np.array([device.coords for device in devices]),
            np.array([getattr(device, "slice_index", None) or 0 for device in devices]),
            np.array([device.process_index for device in devices]),
        )

    @functools.cached_property
    def per_chip(self) -> int:
        """Devices of a chip."""
        return len(self.coords) // len(self._chips(np.arange(len(self.coords))))

    def seconds(self, kind: str, size: int, groups: np.ndarray) -> dict[str, float]:
        """Time of one collective by itself: "ici", inside of slices, and "dcn", between them.

        Args:
            kind: one of `protlm_jax.planning.collectives.KINDS`.
            size: bytes of the whole array: gathered, or before it is scattered.
            groups: [groups, devices] int; all groups do the same, so the first is measured.
        """
        if kind == "collective-permute":
            return {"ici": max(self._sent(size, pair) for pair in groups), "dcn": 0.0}
        group = groups[0]
        own = group[self.slices[group] == self.slices[group[0]]]
        count = len(group) // len(own)
        ici = self._in_slice(_RECEIVED[kind] * size, own, kind)
        # The members of a slice share what it sends: each its part of what was reduced or gathered.
        leaves = _RECEIVED[kind] * size * (count - 1) / count / len(own)
        per_host = np.sum(self.hosts == self.hosts[group[0]])
        return {"ici": ici, "dcn": leaves * float(per_host) / DCN_BYTES}

    def _in_slice(self, received: float, group: np.ndarray, kind: str) -> float:
        """Seconds until every chip of a group in one slice has received its part."""
        chips = self._chips(group)
        if len(chips) == 1:
            return 0.0  # cores of one chip: through its HBM, which is counted there
        links, hops = 0.0, 0.0
        for axis in range(chips.shape[1]):
            places = np.unique(chips[:, axis])
            if len(places) == 1:
                continue
            gap = int(np.diff(places).min())
            length = int(self.coords[:, axis].max()) + 1
            ring = self.chip.closes(length) and len(places) * gap == length
            links += (2 if ring else 1) / gap
            hops += len(places) * gap / (2 if ring else 1)
            if kind == "all-to-all" and ring:
                received = received / 2  # nothing goes further than half the way round
        sharing = self.per_chip * len(chips) / len(group)
        moved = received * sharing * (len(chips) - 1) / len(chips)
        return max(moved / (links * self.chip.link), hops * HOP_SECONDS)

    def _sent(self, size: int, pair: np.ndarray) -> float:
        """Seconds until one device's array is at another."""
        hops = int(np.abs(self.coords[pair[0]] - self.coords[pair[1]]).sum())
        return hops * (size * self.per_chip / self.chip.link + HOP_SECONDS)

    def _chips(self, group: np.ndarray) -> np.ndarray:
        """[chips, axes]: distinct chips of devices, of all slices."""
        places = np.column_stack([self.slices[group], self.coords[group]])
        return np.unique(places, axis=0)[:, 1:]
