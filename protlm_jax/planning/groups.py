"""Which devices speak in a collective: the ways in which a program's text (HLO) says it.

replica_groups={{0,1},{2,3}}                          written out
replica_groups=[2,4]<=[4,2]T(1,0)                     0..7 as [4, 2], turned, then as 2 groups
replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}
                                                      0..7 as [2, 4], turned: a mesh; along a
source_target_pairs={{0,1},{1,0}}                     who sends to whom
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from protlm_jax.planning.hlo import Instruction

_LIST = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=@?mesh\w*\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")  # 'a', or 'a':(2)4, of which 2 go before


def groups_of(instruction: Instruction, mesh: tuple[int, ...]) -> np.ndarray:
    """The groups of devices that speak, as places in the mesh's flat order.

    Args:
        instruction: a collective.
        mesh: sizes of the mesh's axes.

    Returns:
        [groups, devices] int. Pairs of source and target are groups of two.

    Raises:
        ValueError: for groups written in a way that is not known.
    """
    text, devices = instruction.attributes, math.prod(mesh)
    if "_xla_megascale_transfer_type" in text:  # the slices are the mesh's first axis
        return np.arange(devices).reshape(mesh[0], -1).T
    if match := _MESH.search(text):
        return _of_mesh(match, devices)
    if match := _IOTA.search(text):
        shape, source, turned = match.groups()
        return _turned(_sizes(source), turned).reshape(_sizes(shape))
    if (match := _LIST.search(text)) and match[1]:
        return np.array([_sizes(group) for group in re.findall(r"\{([\d,]*)\}", match[1])])
    if match or "replica_groups" not in text:  # empty: all devices
        return np.arange(devices)[None]
    raise ValueError(f"groups of {instruction.name} are written in an unknown way: {text[:200]}")


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The axes of a mesh along which groups of its devices stretch, as "data, fsdp"."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # [axes, groups, devices]
    stretched = (places != places[:, :, :1]).any(axis=(1, 2))
    return ", ".join(axis for axis, is_it in zip(mesh, stretched, strict=True) if is_it)


def _of_mesh(match: re.Match[str], devices: int) -> np.ndarray:
    axes, source, turned, along = match.groups()
    names = re.findall(r"'(\w+)'=(\d+)", axes)
    sizes = {name: int(size) for name, size in names}
    ids = _turned(_sizes(source) if source else [devices], turned).reshape(list(sizes.values()))
    # An axis of which a part alone is spoken along is three: before the part, it, and after.
    shape: list[int] = []
    spoken: list[int] = []
    parts = {name: (before, size) for name, before, size in _PART.findall(along)}
    for name, size in sizes.items():
        before, part = map(int, parts[name]) if parts.get(name, ("", ""))[0] else (1, size)
        spoken += [len(shape) + 1] if name in parts else []
        shape += [before, part, size // before // part]
    ids = np.moveaxis(ids.reshape(shape), spoken, range(-len(spoken), 0))
    return ids.reshape(-1, math.prod(ids.shape[len(ids.shape) - len(spoken) :]))


def _turned(sizes: list[int], turned: str | None) -> np.ndarray:
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_sizes(turned)) if turned else ids


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]
