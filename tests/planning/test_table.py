"""What stands below the table of a plan."""

from __future__ import annotations

import dataclasses

from protlm_jax.planning.compile import Plan
from protlm_jax.planning.table import table

FIELDS = {field.name: 0 for field in dataclasses.fields(Plan)}
EMPTY = {
    "topology": "v3:2x2",
    "mesh": {"data": 8},
    "accumulate": 1,
    "fits": False,
    "step_seconds": None,
}
SILENT = {"phase": "", "suggestion": "", "attention": "", "chosen": "", "whole": [], "unsplit": []}


def test_what_was_chosen_and_what_is_whole_is_said_for_each_phase() -> None:
    plain = Plan(**{**FIELDS, **EMPTY, **SILENT})
    spoken = dataclasses.replace(
        plain,
        phase="bfd",
        chosen="mesh: data 8, chosen: it fits",
        whole=["vocab of 30 does not divide over tensor = 4: whole on each device in head/bias"],
        unsplit=["f32[8,16,4]"],
    )
    before, after = table([plain]).splitlines(), table([spoken]).splitlines()
    assert after[len(before) :] == [
        "phase bfd: mesh: data 8, chosen: it fits",
        "phase bfd: vocab of 30 does not divide over tensor = 4: whole on each device in head/bias",
        "phase bfd: every device holds all rows of f32[8,16,4]",
    ]
