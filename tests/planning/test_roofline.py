"""The time of programs, walked through by hand."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax.planning.hlo import read
from protlm_jax.planning.interconnect import Network
from protlm_jax.planning.roofline import Spent, Walk
from protlm_jax.training.hardware import CHIPS, Chip

CHIP = Chip(peak=1e12, clock=1e9, hbm=1e11, link=1e9, ring=8)

TEXT = """\
%layer (state: (s32[], f32[1000,1000])) -> (s32[], f32[1000,1000]) {
  %state = (s32[], f32[1000,1000]{1,0}) parameter(0)
  %x = f32[1000,1000]{1,0} get-tuple-element(%state), index=1
  %begin = (f32[1000]{0}, f32[8000]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8]
  %y = f32[1000,1000]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %end = f32[8000]{0} all-gather-done(%begin)
  %slow = f32[10]{0} exponential(%end), backend_config={"estimated_cycles":"5000000"}
  ROOT %next = (s32[], f32[1000,1000]{1,0}) tuple(%i, %y)
}

%more (state.1: (s32[], f32[1000,1000])) -> pred[] {
  %constant.4 = s32[]{:T(256)} constant(30)
  ROOT %lt = pred[] compare(%i, %constant.4), direction=LT
}

ENTRY %main (w: f32[1000,1000]) -> f32[1000000] {
  %w = f32[1000,1000]{1,0} parameter(0)
  %while.1 = (s32[], f32[1000,1000]{1,0}) while(%w), condition=%more, body=%layer
  ROOT %all-reduce.2 = f32[1000000]{0} all-reduce(%w), replica_groups={{0,1,2,3,4,5,6,7}}
}
"""


def walked(text: str) -> Spent:
    line = np.stack([np.zeros(8, int), np.arange(8)], axis=1)
    network = Network(CHIP, line, np.zeros(8, int), np.zeros(8, int))
    return Walk(read(text), network, (8, 1, 1)).all()


REDUCED = 2 * 7 / 8 * 4e6 / 2e9


def test_a_program_takes_what_its_instructions_take_one_after_the_other() -> None:
    took = walked(TEXT)
    assert took.flops == 30 * 2 * 10**9
    assert took.alone["compute"] == pytest.approx(30 * 2e-3)
    assert took.alone["ici"] == pytest.approx(30 * 7 / 8 * 32e3 / 2e9 + REDUCED)
    # The gathering ends before the product: nothing is left to wait for.
    expected = {"compute": 30 * 2e-3, "vector": 30 * 5e-3, "ici": REDUCED}
    for resource, seconds in expected.items():
        assert took.booked[resource] == pytest.approx(seconds)
    assert took.seconds == pytest.approx(sum(expected.values()))


def test_a_collective_that_outlasts_the_product_costs_the_rest() -> None:
    took = walked(TEXT.replace("f32[8000]", "f32[8000000]"))
    gathered = 7 / 8 * 32e6 / 2e9
    assert took.booked["ici"] == pytest.approx(30 * (gathered - 2e-3) + REDUCED, rel=1e-3)


BETWEEN = """\
ENTRY %main (w: f32[1000,1000]) -> f32[1000] {
  %w = f32[1000,1000]{1,0} parameter(0)
  %send.1 = (f32[1000000]{0}, u32[], token[]) send(%w, %t), is_host_transfer=true, SENT
  %recv.1 = (f32[1000000]{0}, u32[], token[]) recv(%t), is_host_transfer=true, SENT
  %send-done.1 = token[] send-done(%send.1), is_host_transfer=true
  %y = f32[1000,1000]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %recv-done.1 = (f32[1000000]{0}, token[]) recv-done(%recv.1), is_host_transfer=true
}
"""


def test_exchanges_between_slices_overlap_products() -> None:
    sent = (
        '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"'
    )
    line = np.stack([np.zeros(16, int), np.tile(np.arange(8), 2)], axis=1)
    network = Network(CHIP, line, np.arange(16) // 8, np.arange(16) // 4)
    took = Walk(read(BETWEEN.replace("SENT", sent)), network, (2, 8, 1, 1)).all()
    assert took.alone["dcn"] == pytest.approx(4 * 4e6 / 25e9)  # of four devices of a host
    assert took.booked["dcn"] == 0, "over before the product is"
    assert took.seconds == pytest.approx(2e-3)


def test_clocks_are_those_at_which_the_matrix_units_reach_the_peak() -> None:
    units = {"v2": 2, "v3": 4, "v4": 8, "v5e": 4, "v5p": 8}  # of a chip, as documented
    for generation, count in units.items():
        chip = CHIPS[generation]
        assert count * 128 * 128 * 2 * chip.clock == pytest.approx(chip.peak, rel=1e-3)
