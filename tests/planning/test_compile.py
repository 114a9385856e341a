"""The train step compiled for TPU pods on a machine without any."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from protlm_jax.config.files import load_config
from protlm_jax.errors import ProtlmError
from protlm_jax.planning.compile import (
    Plan,
    abstract_batch,
    plan,
    plan_recipe,
    required_bytes,
    suggest,
)
from protlm_jax.planning.table import table
from protlm_jax.planning.topologies import topology
from protlm_jax.training.assembly import assemble
from protlm_jax.training.state import bytes_on_device
from protlm_jax.vocabularies import get_vocabulary

# A phase of a recipe per family, the pod of its paper (for Transformer-XL, which ran on GPUs, a
# v3-1024), and how many cores share what would be a whole copy of the state.
RECIPES = {
    "albert": ("prot_albert", "length2048", "v3:16x16", 1),
    "bert": ("prot_bert_bfd", "length2048", "v3:16x32", 1),
    "electra": ("prot_electra_bfd", "length512", "v3:16x16", 1),
    "t5": ("prot_t5_xxl_bfd", "", "v3:16x32", 64),
    "transformer_xl": ("prot_txl_bfd", "", "v3:16x32", 8),
    "xlnet": ("prot_xlnet", "", "v3:16x16", 1),
}
# Numbers of 4 bytes kept per parameter: the parameter and Adam's moments; Adafactor's are factored.
KEPT = {"adamw": 3, "lamb": 3, "adafactor": 1}


compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install 'protlm-jax[plan]'"
)


@pytest.mark.pods
@pytest.mark.libtpu
@compiles
@pytest.mark.parametrize("family", RECIPES)
def test_recipes_fit_the_pods_of_their_papers(family: str) -> None:
    name, phase, pod, shared = RECIPES[family]
    (made,) = plan_recipe(f"configs/{name}.py", [], topology(pod), phase)
    assert made.fits, made.suggestion
    assert made.state_bytes < made.peak_bytes < made.available_bytes
    assert not made.unsplit, "activations that every core holds for all rows"
    kept = KEPT["adafactor" if family == "t5" else "lamb"] * 4 * made.parameters / shared
    rest = made.state_bytes - kept  # small tensors, and Transformer-XL's memory
    if family != "transformer_xl":
        assert abs(rest) < 0.1 * kept
    gathers = made.collectives.get("all-gather")
    if shared == 1:
        assert gathers is None or gathers.bytes < 0.01 * made.state_bytes
    else:  # of FSDP: a matrix of one layer at a time, in bfloat16
        assert gathers is not None and gathers.largest < 2 * made.parameters / 20


@pytest.mark.libtpu
@compiles
def test_a_small_model_is_planned_for_eight_cores() -> None:
    config = load_config(
        "configs/tiny.py:bert",
        ["model.num_layers=1", "model.dtype=bfloat16", "mesh.fsdp=2", "data.length=128"],
    )
    made = plan(config, topology("v3:2x2"))
    assert made.fits and not made.suggestion and not made.unsplit
    assert made.mesh == {"data": 4, "fsdp": 2, "tensor": 1}
    assert made.state_bytes == pytest.approx(3 * 4 * made.parameters / 2, rel=0.05)
    assert made.state_bytes < made.peak_bytes < 0.1 * made.available_bytes
    assert made.collectives["all-reduce"].bytes > 0
    assert made.collectives["all-gather"].largest == 4 * 512 * 96  # the table of positions
    assert made.executed_flops and made.step_seconds and made.seconds and made.spent
    assert 0.9 < made.executed_flops / made.model_flops < 1.5  # nothing is computed again
    assert made.mfu and made.hfu and made.roofline_mfu and made.mfu < made.roofline_mfu < 1
    assert made.hfu / made.mfu == pytest.approx(made.executed_flops / made.model_flops)
    assert made.step_seconds == pytest.approx(sum(made.spent.values()))
    assert made.step_seconds >= max(made.seconds.values())
    assert made.binds == max(made.spent, key=lambda name: made.spent[name])
    assert made.days == pytest.approx(config.train.steps * made.step_seconds / 86_400)
    by_axis = made.collectives_by_axis
    assert (
        by_axis
        and set(by_axis) <= {"data", "fsdp", "data, fsdp"}
        and "all-gather" in by_axis["fsdp"]
    )
    for kind, one in made.collectives.items():
        assert one.bytes == sum(kinds[kind].bytes for kinds in by_axis.values() if kind in kinds)


@pytest.mark.libtpu
@compiles
def test_a_plan_that_does_not_fit_has_a_suggestion() -> None:
    """A table of positions that takes more than a core has, split or not."""
    config = load_config(
        "configs/tiny.py:bert",
        ["model.num_layers=1", "model.max_positions=50_000_000", "model.position_init=normal"],
    )
    made = plan(config, topology("v3:2x2"))
    assert not made.fits
    assert made.peak_bytes > made.available_bytes
    assert made.suggestion == "--config.model.remat=minimal"
    assert not made.collectives and made.step_seconds is None and made.binds is None
    assert "does not fit; try --config.model.remat=minimal" in table([made])
    assert "not known" in table([made])


def test_notes_stand_below_the_table_for_each_phase() -> None:
    fields = {field.name: 0 for field in dataclasses.fields(Plan)}
    shape = {"topology": "v3:2x2", "mesh": {"data": 8}, "accumulate": 1, "step_seconds": None}
    texts = dict.fromkeys(("phase", "suggestion", "attention", "chosen"), "")
    plain = Plan(**{**fields, **shape, **texts, "whole": [], "unsplit": []})
    whole = ["vocab of 30 does not divide over tensor = 4: whole on each device in head/bias"]
    noted = {"phase": "bfd", "chosen": "mesh: data 8", "whole": whole, "unsplit": ["f32[8,16,4]"]}
    after = table([dataclasses.replace(plain, **noted)]).splitlines()
    assert after[len(table([plain]).splitlines()) :] == [
        "phase bfd: mesh: data 8",
        f"phase bfd: {whole[0]}",
        "phase bfd: every device holds all rows of f32[8,16,4]",
    ]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Ran out of memory in memory space hbm. Used 45.50G of 15.48G hbm.", 45.5 * 2**30),
        ("21.45G required for HLO temporaries (512.00M): too much", 512 * 2**20),
        ("Allocation (size=17179869184) would exceed memory (size=100)", 2**34),
    ],
)
def test_what_the_compiler_required_bytes(message: str, expected: float) -> None:
    assert required_bytes(f"RESOURCE_EXHAUSTED: {message}") == expected


def test_another_failure_of_the_compiler_is_one_line() -> None:
    with pytest.raises(ProtlmError, match="cannot compile this step: INTERNAL: Mosaic failed"):
        required_bytes("INTERNAL: Mosaic failed")


@pytest.mark.parametrize("given", ["data.prepared=mine", "phases.length512.data.fasta=mine.fa"])
def test_no_corpus_is_read(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr("protlm_jax.planning.compile.plan", lambda config, *_: config)
    overrides = [given, "train.seed=5"]
    for config in plan_recipe("configs/prot_bert_bfd.py", overrides, topology("v3:2x2")):
        assert config.data.fasta == "unread.fasta" and config.data.prepared is None
        assert config.train.seed >= 5


@pytest.mark.parametrize(
    ("overrides", "suggestion"),
    [
        ([], "model.remat=minimal"),
        (["model.remat=minimal"], "model.remat=full"),
        (["model.remat=full"], "train.accumulate=5"),
        (["model.remat=full", "train.accumulate=5"], "mesh.tensor=2"),
        (["model.remat=full", "model.max_positions=50_000"], "mesh.fsdp=8"),
    ],
)
def test_suggestions_begin_with_what_costs_least(overrides: list[str], suggestion: str) -> None:
    config = load_config("configs/tiny.py:bert", ["train.batch_size=40", *overrides])
    parts = assemble(config)  # eight cores with five rows each
    state = bytes_on_device(parts.abstract, parts.layout)
    found = suggest(config, parts, state, available=4 * 10**7)
    assert found.endswith(f"--config.{suggestion}")


@pytest.mark.parametrize(
    ("variant", "task"),
    [("bert", "tokens"), ("txl", "stream"), ("t5", "prott5"), ("t5", "span3"), ("t5", "ankh")],
)
def test_abstract_batches_are_those_of_the_data(variant: str, task: str, tmp_path: Path) -> None:
    from protlm_jax.data.pipeline import open_batches

    fasta = tmp_path / "proteins.fasta"
    fasta.write_text("".join(f">p{i}\n{'ACDEFGHIKL' * 2}\n" for i in range(40)))
    config = load_config(
        f"configs/tiny.py:{variant}",
        ["train.batch_size=4", "data.length=32", f"data.task={task}", f"data.fasta={fasta}"],
    )
    vocabulary = get_vocabulary(config.model.vocabulary)
    real = next(open_batches(config.data, vocabulary, split="train", seed=0, batch_size=4))
    abstract = abstract_batch(config)
    assert {n: (a.shape, a.dtype) for n, a in abstract.items()} == {
        n: (a.shape, a.dtype) for n, a in real.items()
    }
