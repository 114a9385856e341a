"""Collectives on a torus, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax.planning.interconnect import Network
from protlm_jax.training.hardware import Chip

CHIP = Chip(peak=1e14, clock=1e9, hbm=1e12, link=1e11, ring=8)
SIZE = 8 * 10**8


def grid(rows: int, columns: int, cores: int = 1, slices: int = 1) -> Network:
    """Devices in the order slice, row, column, core; a host per row."""
    places = np.stack(np.unravel_index(range(slices * rows * columns * cores),
                                       (slices, rows, columns, cores)), axis=1)  # fmt: skip
    return Network(CHIP, places[:, 1:3], places[:, 0], places[:, 0] * rows + places[:, 1])


@pytest.mark.parametrize(
    ("network", "kind", "groups", "seconds"),
    [
        (grid(1, 8), "all-gather", [range(8)], 7 / 8 * SIZE / 2e11),  # a ring: both directions
        (grid(1, 8), "all-gather", [range(4)], 3 / 4 * SIZE / 1e11),  # a line: one
        (grid(1, 8), "all-reduce", [range(8)], 2 * 7 / 8 * SIZE / 2e11),
        (grid(8, 8), "reduce-scatter", [range(64)], 63 / 64 * SIZE / 4e11),  # two axes
        # Interleaved groups share the links.
        (grid(1, 8), "all-gather", [range(0, 8, 2), range(1, 8, 2)], 3 / 4 * SIZE / 1e11),
    ],
)
def test_a_group_uses_the_links_of_the_axes_along_which_it_extends(
    network: Network, kind: str, groups: list[range], seconds: float
) -> None:
    found = network.seconds(kind, SIZE, np.array(groups))
    assert found == {"ici": pytest.approx(seconds), "dcn": 0.0}


def test_cores_of_a_chip_share_its_links_unless_they_are_in_one_group() -> None:
    network = grid(1, 8, cores=2)
    assert network.per_chip == 2
    together = network.seconds("all-gather", SIZE, np.arange(16)[None])["ici"]
    assert together == pytest.approx(7 / 8 * SIZE / 2e11)
    apart = network.seconds("all-gather", SIZE, np.arange(16).reshape(8, 2).T)["ici"]
    assert apart == 2 * together
    assert network.seconds("all-gather", SIZE, np.arange(2)[None])["ici"] == 0.0


def test_what_is_small_takes_the_time_of_its_hops() -> None:
    assert grid(1, 8).seconds("all-gather", 8, np.arange(8)[None])["ici"] == 4e-6
    pairs = np.array([[0, 1], [0, 3]])
    assert grid(1, 8).seconds("collective-permute", 8, pairs)["ici"] == pytest.approx(3e-6, 1e-3)


def test_between_slices_each_host_sends_what_its_devices_are_left_with() -> None:
    network = grid(1, 8, slices=2)
    everyone = network.seconds("all-reduce", SIZE, np.arange(16)[None])
    assert everyone["ici"] == pytest.approx(2 * 7 / 8 * SIZE / 2e11)
    assert everyone["dcn"] == pytest.approx(2 * SIZE / 2 / 8 * 8 / 25e9)
    across = network.seconds("all-reduce", SIZE, np.arange(16).reshape(2, 8).T)
    assert across == {"ici": 0.0, "dcn": pytest.approx(2 * SIZE / 2 * 8 / 25e9)}
