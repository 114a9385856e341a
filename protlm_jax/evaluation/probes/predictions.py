"""What trained heads answer for the proteins of a split, whose features are read once for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from protlm_jax.evaluation.probe_data import UNKNOWN
from protlm_jax.evaluation.probes.features import Source
from protlm_jax.evaluation.probes.trained import TrainedHeads

Found = dict[str, dict[str, np.ndarray]]
"""head -> target -> array."""


def by_protein(source: Source, trained: Mapping[str, TrainedHeads]) -> Iterator[tuple[int, Found]]:
    """(place in the split, head -> target -> [seeds, inputs, items, classes or 1] float32).

    Items are the protein's residues, or one if it is the protein that carries the label. Proteins
    come in the order of the split.
    """
    for laid in source.laid(None):
        found = {name: heads.predict(laid.batch) for name, heads in trained.items()}
        for slot, (member, start) in enumerate(zip(laid.members, laid.starts, strict=True)):
            place = slice(slot, slot + 1)
            if source.level == "residue":
                place = slice(start, start + int(source.store.lengths[member]))
            parts = {
                name: {target: values[:, :, place] for target, values in answers.items()}
                for name, answers in found.items()
            }
            yield int(member), parts


def decided(source: Source, trained: Mapping[str, TrainedHeads]) -> Found:
    """head -> target -> [seeds, inputs, items] of all proteins end to end.

    The most probable class as int16, or the number as float32.
    """
    sizes = source.store.lengths if source.level == "residue" else np.ones_like(source.sizes)
    ends = np.cumsum(sizes)
    out: Found = {name: {} for name in trained}
    for member, parts in by_protein(source, trained):
        place = slice(ends[member] - sizes[member], ends[member])
        for name, answers in parts.items():
            for target in trained[name].targets:
                values = answers[target.name]
                classes = target.kind == "classes"
                if target.name not in out[name]:
                    dtype, fill = (np.int16, UNKNOWN) if classes else (np.float32, np.nan)
                    shape = (*values.shape[:2], int(ends[-1]))
                    out[name][target.name] = np.full(shape, fill, dtype)
                best = values.argmax(axis=-1) if classes else values[..., 0]
                out[name][target.name][:, :, place] = best
    return out
