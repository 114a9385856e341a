"""Layers deleted, swapped, repeated and reversed: the answer under other layer programs.

Every program is resumed from the cached stream before its first change, and steps that are left out
cost nothing; all programs of a kind are one compiled loop.

Sources: Lad et al. 2024, arXiv 2406.19384 (deletions and swaps of neighbours); Kapl et al. 2025,
arXiv 2512.08819 (blocks); Sun et al. 2024, arXiv 2407.09298 (order). What is compared is ours: the
20 amino acids at the positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from protlm_jax.evaluation.depth.answers import differences
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.models.stack import LayerProgram

Edit = Callable[[LayerProgram, int, int], LayerProgram]  # program, first step, steps


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


def swaps(subject: Subject) -> dict[str, Stat]:
    """Layer l and its successor exchanged (M10): "swap_<name>" (layer), N - 1 of them.

    Cost: (N + 1) / 2 forwards.
    """
    return _series(subject, "swap", lambda program, at: program.swap(at, at + 1), -1)


def repeats(subject: Subject) -> dict[str, Stat]:
    """Layer l run twice (M10): "repeat_<name>" (layer).

    Cost: (N + 1) / 2 forwards, and one layer more for each.
    """
    return _series(subject, "repeat", lambda program, at: program.repeat(at), 0)


def block_deletions(subject: Subject) -> dict[str, Stat]:
    """Neighbouring layers left out together (M10): "delete_<name>" (size, layer).

    Sizes are the powers of two below N; "layer" is the first one that is left out. Not defined
    (nothing counts) where fewer layers are left from there.

    Cost: for size n about (N - n)^2 / 2N forwards.
    """
    return _blocks(subject, "delete", lambda p, at, size: p.skip(*range(at, at + size)))


def reversals(subject: Subject) -> dict[str, Stat]:
    """Neighbouring layers run in the opposite order (M10): "reverse_<name>" (size, layer).

    Sizes as in `block_deletions`; two are a swap. Cost: for size n about (N - n) / 2 forwards.
    """
    return _blocks(subject, "reverse", lambda p, at, size: p.reverse(at, at + size))


def block_sizes(num_layers: int) -> tuple[int, ...]:
    """2, 4, 8, ... below the number of layers."""
    return tuple(
        1 << power for power in range(1, num_layers.bit_length()) if 1 << power < num_layers
    )


def _series(
    subject: Subject, prefix: str, edit: Callable[[LayerProgram, int], LayerProgram], beyond: int
) -> dict[str, Stat]:
    with jax.ensure_compile_time_eval():
        full = LayerProgram.full(subject.num_layers, len(subject.sublayers))
        programs = [edit(full, at) for at in range(subject.num_layers + beyond)]
        stacked = LayerProgram.stack(programs)
    found = under_programs(subject, stacked)
    return {f"{prefix}_{name}": stat.named("layer") for name, stat in found.items()}


def _blocks(subject: Subject, prefix: str, edit: Edit) -> dict[str, Stat]:
    number, sizes = subject.num_layers, block_sizes(subject.num_layers)
    places = [(i, at) for i, size in enumerate(sizes) for at in range(number - size + 1)]
    with jax.ensure_compile_time_eval():
        full = LayerProgram.full(number, len(subject.sublayers))
        stacked = LayerProgram.stack([edit(full, at, sizes[i]) for i, at in places])
    found = under_programs(subject, stacked)
    rows, columns = (jnp.asarray(x) for x in zip(*places, strict=True))

    def spread(x: jax.Array) -> jax.Array:
        return jnp.zeros((len(sizes), number, x.shape[-1])).at[rows, columns].set(x)

    spread_out = jax.tree.map(spread, found)
    return {f"{prefix}_{name}": stat.named("size", "layer") for name, stat in spread_out.items()}
