"""Layers deleted, swapped, repeated and reversed: the answer under other layer programs.

Every program is resumed from the cached stream before its first change, and steps that are left out
cost nothing; all programs of a kind are one compiled loop.

Sources: Lad et al. 2024, arXiv 2406.19384 (deletions and swaps of neighbours); Kapl et al. 2025,
arXiv 2512.08819 (blocks); Sun et al. 2024, arXiv 2407.09298 (order). What is compared is ours: the
20 amino acids at the positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.answers import differences
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.models.stack import LayerProgram


def under_programs(subject: Subject, programs: LayerProgram) -> dict[str, Stat]:
    """The answer under each of some programs, compared with the model's own by `differences`.

    Programs run at every position: a layer that runs twice or elsewhere has no clean counterpart
    to keep at the other positions.

    Args:
        programs: stacked, [programs, steps]; see `LayerProgram.stack`.

    Returns:
        "<name>" (program), for every name of `differences`.

    Cost: of each program its steps from the first change on, and a head.
    """
    base = subject.answer(subject.streams[-1])

    def one(program: LayerProgram) -> dict[str, Stat]:
        start = program.first_change
        before = subject.streams[jnp.minimum(start, subject.num_layers)]
        final, _ = subject.resume(before, start, lambda carry, *_: carry, (), program)
        return differences(subject, base, subject.answer(final))

    found = jax.lax.map(one, programs)
    return {name: stat.named("program") for name, stat in found.items()}


@dataclass(frozen=True)
class Family:
    """Programs of one kind: one for each place where it can begin, and, of blocks, each size.

    Attributes:
        prefix: of the names of its results.
        edit: (full program, first step, steps) -> program.
        sizes: number of layers -> sizes; one size gives no dimension.
    """

    prefix: str
    edit: Callable[[LayerProgram, int, int], LayerProgram]
    sizes: Callable[[int], tuple[int, ...]]
    by_size: bool = False


def block_sizes(num_layers: int) -> tuple[int, ...]:
    """2, 4, 8, ... below the number of layers."""
    powers = (1 << power for power in range(1, num_layers.bit_length()))
    return tuple(size for size in powers if size < num_layers)


FAMILIES = {
    # Layer l and its successor exchanged; (N + 1) / 2 forwards.
    "swaps": Family("swap", lambda p, at, size: p.swap(at, at + 1), lambda n: (2,)),
    # Layer l run twice; (N + 3) / 2 forwards.
    "repeats": Family("repeat", lambda p, at, size: p.repeat(at), lambda n: (1,)),
    # Neighbours left out together; for size n about (N - n)^2 / 2N forwards.
    "block_deletions": Family(
        "delete", lambda p, at, size: p.skip(*range(at, at + size)), block_sizes, by_size=True
    ),
    # Neighbours run in the opposite order; for size n about (N - n) / 2 forwards.
    "reversals": Family(
        "reverse", lambda p, at, size: p.reverse(at, at + size), block_sizes, by_size=True
    ),
}


def perturbations(subject: Subject, kinds: Sequence[str]) -> dict[str, Stat]:
    """The answer with layers swapped, repeated, deleted or reversed (M10), as one compiled loop.

    Args:
        kinds: out of FAMILIES.

    Returns:
        "swap_<name>" (first), "repeat_<name>" (layer), and "delete_<name>" and "reverse_<name>"
        (size, first) for every name of `differences`; "first" is the first layer that is moved or
        left out, "size" counts them: 2, 4, 8, ... Nothing counts where too few layers are left.

    Cost: see FAMILIES.
    """
    number, places, programs = subject.num_layers, [], []
    with jax.ensure_compile_time_eval():
        full = LayerProgram.full(number, len(subject.sublayers))
        for kind in kinds:
            family = FAMILIES[kind]
            for row, size in enumerate(family.sizes(number)):
                for at in range(number - size + 1):
                    places.append((kind, row, at))
                    programs.append(family.edit(full, at, size))
        stacked = LayerProgram.stack(programs)
    found = under_programs(subject, stacked)
    result = {}
    for kind in kinds:
        mine = np.array([i for i, (k, _, _) in enumerate(places) if k == kind])
        entries = tuple(np.array([places[i][1:] for i in mine]).T)
        for name, stat in found.items():
            spread = jax.tree.map(lambda x, m=mine, e=entries: _spread(x[m], e), stat)
            if not FAMILIES[kind].by_size:
                spread = jax.tree.map(lambda x: x[0], spread)
            first = "layer" if kind == "repeats" else "first"
            dims = ("size", first) if FAMILIES[kind].by_size else (first,)
            result[f"{FAMILIES[kind].prefix}_{name}"] = spread.named(*dims)
    return result


def _spread(x: jax.Array, at: tuple[np.ndarray, ...]) -> jax.Array:
    """[programs, P] to [size, layer, P], zero where there is no program."""
    shape = [int(axis.max()) + 1 for axis in at]
    return jnp.zeros((*shape, x.shape[-1])).at[at].set(x)
