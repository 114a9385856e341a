"""Logical axis names on parameters and activations, and how a set of rules lays them on a mesh.

Models name their axes and know nothing of a mesh. The rules are a table in
`protlm_jax.partitioning`; while they are active (`flax.linen.logical_axis_rules`) inside
`jax.set_mesh`, `constrain` turns names into sharding constraints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

Names = tuple[str | None, ...]
Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]


class NamedAxes(nn.LogicallyPartitioned):
    """An initial parameter value with a logical name per axis.

    Unlike flax's own box it never constrains the value: shardings of parameters are given to
    `jax.jit` from outside, and flax's constraint would refuse what does not divide.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:
        return super().unbox(apply_constraint=False)


def named(init: Callable[..., jax.Array], *names: str) -> Callable[..., NamedAxes]:
    """Wraps an initializer so that its value carries logical axis names."""

    def boxed(*args: Any, **kwargs: Any) -> NamedAxes:
        return NamedAxes(init(*args, **kwargs), names=names)

    return boxed


class Undivided(NamedTuple):
    """A dimension that stays whole because its mesh axes do not divide it.

    Attributes:
        name: the dimension's logical name.
        size: of it.
        axes: mesh axes that the rules would have it split over, and
        parts: into how many parts.
    """

    name: str
    size: int
    axes: tuple[str, ...]
    parts: int


def logical_spec(
    names: Names, shape: Sequence[int], mesh_shape: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """The partition spec of an array, one mesh axis used at most once, and only where it divides.

    Rules are read in order; of a rule's mesh axes, those already taken or missing from the mesh
    are left out. A dimension that the remaining axes do not divide stays whole (20 heads over
    tensor=8, 30 vocabulary rows over tensor=4), because JAX would refuse the uneven split.

    Args:
        names: a logical name or None per dimension.
        shape: the array's shape.
        mesh_shape: size of each mesh axis.
        rules: (logical name, mesh axis or axes or None), most important first.
    """
    return _laid_out(names, shape, mesh_shape, rules)[0]


def undivided(
    names: Names, shape: Sequence[int], mesh_shape: Mapping[str, int], rules: Rules
) -> list[Undivided]:
    """What `logical_spec` leaves whole for want of divisibility, of the same arguments.

    A mesh axis that another dimension of the array took instead is not counted as lost.
    """
    return _laid_out(names, shape, mesh_shape, rules)[1]


def _laid_out(
    names: Names, shape: Sequence[int], mesh_shape: Mapping[str, int], rules: Rules
) -> tuple[PartitionSpec, list[Undivided]]:
    spec: list[tuple[str, ...] | None] = [None] * len(names)
    taken: set[str] = set()
    refused: list[Undivided] = []
    for logical, mesh_axes in rules:
        if logical not in names or mesh_axes is None:
            continue
        dimension = names.index(logical)
        if spec[dimension] is not None:
            continue
        wanted = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
        free = tuple(a for a in wanted if a in mesh_shape and a not in taken and mesh_shape[a] > 1)
        parts = math.prod(mesh_shape[axis] for axis in free)
        if free and shape[dimension] % parts == 0:
            spec[dimension] = free
            taken.update(free)
        elif free:
            refused.append(Undivided(logical, shape[dimension], free, parts))
    whole = [one for one in refused if not taken & {*one.axes}]
    return PartitionSpec(*(s[0] if s is not None and len(s) == 1 else s for s in spec)), whole


def device_kind() -> str:
    """What the program that is being traced will run on: the mesh's devices, or this machine's."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return str((described or jax.devices()[0]).device_kind)


def is_placed() -> bool:
    """Whether it is known here how arrays lie on the devices: on a mesh, or all on the only one.

    Where it is not, as under a mesh that JAX was not told of, what the compiler cannot split over
    devices by itself has to be left alone.
    """
    return not jax.sharding.get_abstract_mesh().empty or len(jax.devices()) == 1


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the partitioner to lay `x` out by its logical axis names; the identity off a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    rules = nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return x
    spec = logical_spec(names, x.shape, dict(mesh.shape), rules)
    return jax.lax.with_sharding_constraint(x, spec)
