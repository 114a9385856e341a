"""The train step's program for a TPU: what it must not do, and its recorded counts.

A refactoring that changes no program changes no count in step_programs.json. After a change of
programs, record them again; the difference is then in the commit for review:

    python tests/planning/test_step_programs.py [FAMILY ...]
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from protlm_jax.config.files import load_config
from protlm_jax.config.run import RunConfig
from protlm_jax.planning.collectives import (
    axes_of,
    calls,
    collectives_by_axis,
    groups_of,
    unsplit,
)
from protlm_jax.planning.compile import abstract_batch
from protlm_jax.planning.costs import flops
from protlm_jax.planning.hlo import Program, read
from protlm_jax.planning.topologies import topology
from protlm_jax.training.assembly import Assembly, assemble
from protlm_jax.training.state import bytes_on_device

RECORD = Path(__file__).with_name("step_programs.json")
COMPILERS = ("jax", "libtpu")
QUICK = ("bert", "t5")
FAMILIES = (
    *QUICK,
    *("albert", "dplm", "electra", "esm2", "esmc", "gpt2", "progen2", "rita", "txl", "xlnet"),
)
# Eight layers are scanned, as those of real models are; fewer would be written out one by one.
OVERRIDES = [
    *("model.num_layers=8", "model.dtype=bfloat16", "model.remat=full"),
    *("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "train.batch_size=16", "data.length=128"),
]
EXTRA = {
    "t5": ["model.num_decoder_layers=8"],
    "electra": ["model.num_heads=8", "model.head_dim=12"],  # two in the generator, for `tensor`
}


def compiled(family: str, *overrides: str, slices: int = 1) -> tuple[RunConfig, Assembly, str]:
    """A family's train step as a program for the eight cores of a v3-8, or of each of several."""
    overrides = (*OVERRIDES, *EXTRA.get(family, ()), *overrides)
    config = load_config(f"configs/tiny.py:{family}", list(overrides))
    parts = assemble(config, topology("v3:2x2", slices).devices)
    text = parts.update.lower(parts.abstract, abstract_batch(config)).compile().as_text()
    return config, parts, text


def counted(program: Program, text: str, parts: Assembly) -> dict[str, Any]:
    """Numbers of executed instructions, FLOPs, and collectives by axis."""
    operations: dict[str, int] = {}
    computed = 0
    for times, where, instruction in program.executed(program.entry):
        kind = instruction.operation
        if kind in ("dot", "convolution", "while", "custom-call"):
            operations[kind] = operations.get(kind, 0) + times
            computed += times * flops(instruction, program.computations[where])
    return {
        "flops of products on a device": computed,
        **{f"executed: {kind}": count for kind, count in sorted(operations.items())},
        **{
            f"{kind} along {axes}, {what}": getattr(one, what)
            for axes, kinds in collectives_by_axis(text, parts.mesh.shape).items()
            for kind, one in kinds.items()
            for what in ("count", "bytes")
        },
    }


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each number that differs."""
    return [
        f"{name}: recorded {recorded.get(name, 0):,}, now {found.get(name, 0):,}"
        for name in {**recorded, **found}
        if recorded.get(name, 0) != found.get(name, 0)
    ]


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in COMPILERS}


@functools.cache
def step_of(family: str) -> tuple[RunConfig, Assembly, str]:
    return compiled(family)


MARKS = {"bert": [], "t5": [pytest.mark.slow]}
families = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=MARKS.get(f, [pytest.mark.long])) for f in FAMILIES]
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install 'protlm-jax[plan]'"
)


@pytest.mark.libtpu
@needs_libtpu
@families
def test_no_device_gathers_split_arrays(family: str) -> None:
    """Whole activations, or parameters outside of FSDP's gathers, are what shardings prevent."""
    config, parts, text = step_of(family)
    assert not objections(config, parts, text)
    gathers = [one for one in calls(read(text)) if one.kind == "all-gather"]
    assert any(one.times > 1 for one in gathers), "of FSDP, in the loop over layers"


EVERYONE = "replica_groups={{0,1,2,3,4,5,6,7}}"
HALVES = "replica_groups={{0,2},{1,3},{4,6},{5,7}}"  # along fsdp


@pytest.mark.libtpu
@needs_libtpu
@pytest.mark.parametrize(
    ("line", "objection"),
    [
        ("%bad = bf16[16,128,96]{2,1,0} copy(%x)", "activations of all rows: bf16[16,128,96]"),
        (f"%bad = f32[8,96,384] all-gather(%x), {EVERYONE}", "along data, fsdp, tensor: bad"),
        (f"%bad = bf16[8,96,384] all-gather(%x), {HALVES}", "more than one matrix of one layer: b"),
    ],
)
def test_forbidden_instructions_are_found(line: str, objection: str) -> None:
    config, parts, text = step_of("bert")
    begin = text.index("{\n", text.index("\nENTRY ")) + 2
    (found,) = objections(config, parts, f"{text[:begin]}  {line}\n{text[begin:]}")
    assert objection in found


def objections(config: RunConfig, parts: Assembly, text: str) -> list[str]:
    """What a program does and must not do."""
    rows, length = config.train.batch_size, config.data.length
    found = [f"activations of all rows: {shape}" for shape in unsplit(text, rows, length)]
    mesh = dict(parts.mesh.shape)
    arrays = zip(jax.tree.leaves(parts.abstract.params), _names(parts.axes), strict=True)
    matrix = max(math.prod(a.shape[int(names[0] == "layers") :]) for a, names in arrays)
    stream = rows // (mesh["data"] * mesh["fsdp"]) * length * config.model.d_model
    for one in calls(read(text)):
        if one.kind != "all-gather":
            continue
        axes = axes_of(groups_of(one.instruction, tuple(mesh.values())), mesh)
        name = one.instruction.name
        if axes == "fsdp" and one.bytes > 4 * matrix:
            found.append(f"more than one matrix of one layer: {name}")
        elif axes != "fsdp" and one.times > 1:
            found.append(f"in the loop over layers, along {axes}: {name}")
        elif axes != "fsdp" and one.bytes > 4 * stream:
            found.append(f"more than a device's own rows, along {axes}: {name}")
    return found


def _names(axes: Any) -> list[tuple[str, ...]]:
    return jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


@pytest.mark.libtpu
@needs_libtpu
@families
def test_the_program_is_the_recorded_one(family: str) -> None:
    record = json.loads(RECORD.read_text())
    if record["compilers"] != versions():
        pytest.skip(f"recorded with {record['compilers']}, here are {versions()}: record anew")
    _, parts, text = step_of(family)
    found = differences(record["programs"][family], counted(read(text), text, parts))
    assert not found, (
        f"the train step of {family} is another program than before:\n  "
        + "\n  ".join(found)
        + f"\nIf that is meant: python tests/planning/{Path(__file__).name} {family}"
    )


@pytest.mark.libtpu
@pytest.mark.slow
@needs_libtpu
def test_slices_exchange_only_sums() -> None:
    _, parts, text = compiled("bert", slices=2)
    by_axis = collectives_by_axis(text, parts.mesh.shape)
    across = {axes: kinds for axes, kinds in by_axis.items() if "slices" in axes}
    assert {kind for kinds in across.values() for kind in kinds} == {"all-reduce"}
    # In bfloat16, of what its slice has summed over `data` each core its half; tables in float32.
    gradients = bytes_on_device(parts.abstract.params, parts.layout.params) / 2 / 2
    sent = sum(one.bytes for kinds in across.values() for one in kinds.values())
    assert gradients < sent < 2 * gradients


@pytest.mark.libtpu
@pytest.mark.slow
@needs_libtpu
def test_each_core_draws_the_bits_of_its_own_rows() -> None:
    config, parts, text = compiled("t5", "model.dropout_rate=0.1", "model.mlp_dropout=True")
    drawn = [
        [int(size) for size in sizes.split(",")]
        for sizes in re.findall(r"= u16\[([\d,]+)\]\S* rng-bit-generator\(", text)
    ]
    mesh, c = parts.mesh.shape, config.model
    rows, length = config.train.batch_size // (mesh["data"] * mesh["fsdp"]), config.data.length
    stream, hidden = [rows, length, c.d_model], [rows, length, c.d_ff // mesh["tensor"]]
    scores = [rows, c.num_heads // mesh["tensor"], length, length]
    assert {tuple(shape) for shape in drawn} == {tuple(s) for s in (stream, hidden, scores)}
    assert not objections(config, parts, text)


def test_differences_are_named() -> None:
    recorded = {"executed: dot": 10, "all-gather along fsdp, count": 1000, "same": 3}
    assert differences(recorded, {"executed: dot": 12, "same": 3}) == [
        "executed: dot: recorded 10, now 12",
        "all-gather along fsdp, count: recorded 1,000, now 0",
    ]


def record(families: list[str]) -> None:
    """Compiles programs and records their counts; those of other families stay."""
    known = json.loads(RECORD.read_text())["programs"] if RECORD.exists() else {}
    for family in families or FAMILIES:
        _, parts, text = compiled(family)
        known[family] = counted(read(text), text, parts)
        print(family, known[family])
    programs = {family: known[family] for family in FAMILIES if family in known}
    content = {"compilers": versions(), "programs": programs}
    RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    record(sys.argv[1:])
