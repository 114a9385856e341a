"""Layers deleted, swapped, repeated and reversed, against PyTorch models built so."""

from __future__ import annotations

import numpy as np
import pytest
from depth_reference import cases, measured, reference

METRICS = ("swaps", "repeats", "block_deletions", "reversals")


def orders(number: int) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Of each kind the entries of its result, with the layers that run."""
    full = list(range(number))
    found: dict[str, list] = {"swap": [], "repeat": [], "delete": [], "reverse": []}
    for at in full:
        found["repeat"].append(((at,), full[: at + 1] + full[at:]))
        if at + 1 < number:
            swapped = [*full[:at], at + 1, at, *full[at + 2 :]]
            found["swap"].append(((at,), swapped))
            found["delete"].append(((0, at), full[:at] + full[at + 2 :]))
            found["reverse"].append(((0, at), swapped))
    return {kind: [(at, tuple(order)) for at, order in each] for kind, each in found.items()}


@pytest.mark.parametrize(("family", "stack"), cases())
def test_programs_answer_like_models_built_so(family: str, stack: str) -> None:
    ref, found = reference(family, stack), measured(family, stack, METRICS)
    base = ref.run().answer
    for kind, entries in orders(ref.number).items():
        for at, order in entries:
            expected = ref.differ(base, ref.run(order=order).answer, ref.target)
            for name, value in expected.items():
                stat = found[f"{kind}_{name}"]
                np.testing.assert_allclose(
                    stat.total[at][:3], value, rtol=1e-4, atol=1e-5, err_msg=f"{kind} {order}"
                )
                assert np.array_equal(stat.count[at][:3], ref.target.sum(-1))
    assert found["swap_kl"].total.shape[0] == ref.number - 1
