"""Groups of devices in all the ways in which programs write them."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax.planning.collectives import axes_of, exchanges, groups_of
from protlm_jax.planning.hlo import read

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def groups(attributes: str, operation: str = "all-reduce") -> np.ndarray:
    text = f"ENTRY %main (a: f32[]) -> f32[] {{\n  ROOT %r = f32[8]{{0}} {operation}(%a)"
    program = read(f"{text}, channel_id=1, {attributes}, to_apply=%add\n}}\n")
    (instruction,) = program.computations["main"].values()
    return groups_of(instruction, tuple(MESH.values()))


@pytest.mark.parametrize(
    ("written", "expected", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]], "fsdp"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", [[0, 4], [1, 5], [2, 6], [3, 7]], "data"),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]], "data, fsdp"),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]], "fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]], "data"),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
            "fsdp",
        ),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]], "data"),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]], "data, fsdp"),
        (
            "replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}",
            [[0, 1], [2, 3], [4, 5], [6, 7]],
            "fsdp",
        ),
        (
            "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}",
            [[0, 2], [1, 3], [4, 6], [5, 7]],
            "fsdp",
        ),
    ],
)
def test_groups_and_the_axes_along_which_they_stretch(
    written: str, expected: list[list[int]], axes: str
) -> None:
    found = groups(written)
    assert found.tolist() == expected
    assert axes_of(found, MESH) == axes


def test_pairs_of_a_permutation() -> None:
    found = groups("source_target_pairs={{0,1},{1,2},{2,3}}", "collective-permute")
    assert found.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert axes_of(found, MESH) == "fsdp"


SEND = """\
ENTRY %main (a: f32[]) -> f32[] {
  %send.1 = (bf16[6,8,128]{2,1,0}, u32[], token[]) send(%a, %after-all.1), channel_id=2,\
 is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",\
 _xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (f32[8]{0}, u32[], token[]) send(%a, %after-all.2), channel_id=4, is_host_transfer=true
}
"""


def test_what_slices_send_each_other() -> None:
    mesh = {"slices": 2, "data": 1, "fsdp": 4, "tensor": 1}
    (sent,) = exchanges(read(SEND))
    assert (sent.kind, sent.bytes) == ("all-reduce", 6 * 8 * 128 * 2)
    found = groups_of(sent.instruction, tuple(mesh.values()))
    assert found.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert axes_of(found, mesh) == "slices"


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of r are written in an unknown way"):
        groups("replica_groups=everyone")
