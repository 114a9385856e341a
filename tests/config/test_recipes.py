"""Every published recipe: what it needs, what it schedules, and that its full size can be built."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from protlm_jax import models, partitioning
from protlm_jax.config.recipes import Phase, load_recipe
from protlm_jax.errors import ProtlmError
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import state_layout

CONFIGS = Path(__file__).parents[2] / "configs"
# Parameters in millions (ProtBert's without its pooler, with its head), and what the phases are:
# (steps, rows, tokens a row, rate at the first step, after the warmup, at the end).
RSQRT = 1 / math.sqrt(1e4)
EXPECTED = {
    "dplm_uniref50": (651.0, [(500_000, 1024, 1024, 0, 4e-5, 1e-5)]),
    "esm2_uniref50": (651.0, [(500_000, 2048, 1024, 0, 4e-4, 0)]),
    "prot_albert": (
        207.6,  # the released file holds a pooler of 16.8 million beside
        [(150_000, 10_752, 512, 0, 2e-3, 0), (150_000, 2560, 2048, 0, 2e-3, 0)],
    ),
    "prot_bert_bfd": (
        419.9,
        [(800_000, 32_768, 512, 0, 2e-3, 4.65e-4), (200_000, 6144, 2048, 4.65e-4, None, 0)],
    ),
    "prot_bert_uniref100": (
        419.9,
        [(300_000, 15_360, 512, 0, 2e-3, 5.56e-4), (100_000, 2560, 2048, 5.56e-4, None, 0)],
    ),
    "prot_electra_bfd": (
        444.2,  # 418.9 + 65.0 for both, less the 41.0 that they share, with both heads
        [(400_000, 9216, 512, 0, 2e-3, 1.05e-3), (400_000, 3584, 1024, 1.05e-3, None, 0)],
    ),
    "prot_t5_xl_bfd": (2818, [(1_200_000, 4096, 512, RSQRT, RSQRT, 9.13e-4)]),
    "prot_t5_xl_uniref50": (
        2818,
        [
            (1_200_000, 4096, 512, RSQRT, RSQRT, 9.13e-4),
            (991_500, 2048, 512, 9.13e-4, None, 6.76e-4),
        ],
    ),
    "prot_t5_xxl_bfd": (11_275, [(920_000, 4096, 512, RSQRT, RSQRT, 1.04e-3)]),
    "prot_t5_xxl_uniref50": (
        11_275,
        [(920_000, 4096, 512, RSQRT, RSQRT, 1.04e-3), (343_000, 2048, 512, 1.04e-3, None, 8.9e-4)],
    ),
    "prot_txl_bfd": (562, [(40_700, 45_056, 512, 0, 5e-4, 0)]),
    "prot_txl_uniref100": (409, [(31_300, 22_528, 512, 0, 2e-3, 0)]),
    "prot_xlnet": (409.4, [(847_000, 1024, 512, 0, 1e-5, 0)]),
}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("prot_*bfd*.py")), ids=lambda file: file.stem)
def test_a_corpus_that_fits_no_host_is_prepared_first(file: Path) -> None:
    said = file.read_text().split('"""')[1]
    assert "protlm prepare --dataset bfd" in said and "--config.data.prepared=data/bfd" in said
    assert "data.fasta" not in said


def load(name: str, *overrides: str) -> list[Phase]:
    given = overrides or ("data.fasta=mine.fasta",)
    return load_recipe(f"configs/{name}", list(given), Path("runs/w"))


def test_no_recipe_is_forgotten() -> None:
    recipes = {file.stem for file in CONFIGS.glob("*.py")} - {
        "tiny",
        "adapt",
        "depth_study",
        "finetune",
    }
    assert recipes == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_wants_its_corpus_and_never_takes_the_sample(name: str) -> None:
    with pytest.raises(ProtlmError, match=r"needs --config\..*data\.fasta=\.\.\.: a FASTA file of"):
        load(f"{name}.py", "train.seed=1")
    assert all(phase.config.data.fasta == "mine.fasta" for phase in load(f"{name}.py"))
    for phase in load(f"{name}.py", "data.prepared=uniref"):
        assert phase.config.data.prepared == "uniref" and phase.config.data.fasta is None


@pytest.mark.parametrize("name", EXPECTED)
def test_phases_and_schedules_are_those_of_the_table(name: str) -> None:
    phases = load(f"{name}.py")
    for phase, expected in zip(phases, EXPECTED[name][1], strict=True):
        steps, rows, length, first, peak, last = expected
        c = phase.config
        assert (c.train.steps, c.train.batch_size, c.data.length) == (steps, rows, length)
        schedule = build_schedule(c.schedule, steps)
        assert float(schedule(0)) == pytest.approx(first, rel=5e-3)
        assert float(schedule(steps)) == pytest.approx(last, rel=5e-3, abs=1e-12)
        if peak is not None:
            assert float(schedule(c.schedule.warmup_steps)) == pytest.approx(peak, rel=1e-5)
    assert len({phase.config.train.seed for phase in phases}) == len(phases)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_full_size_state_is_described_quickly_and_not_made(name: str) -> None:
    began = time.monotonic()
    config = load(f"{name}.py")[-1].config
    mesh = partitioning.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    model = models.build(config.model)
    schedule = build_schedule(config.schedule, config.train.steps)
    optimizer = build_optimizer(config.optimizer, schedule, models.logical_axes(model))
    abstract, _ = state_layout(model, optimizer, mesh, config.train.batch_size)
    assert time.monotonic() - began < 20
    found = models.parameter_count(abstract.params) / 1e6
    assert found == pytest.approx(EXPECTED[name][0], rel=1e-3)


def test_sizes_of_one_recipe() -> None:
    small, large = (load(f"esm2_uniref50.py:{size}")[0].config for size in ("8m", "3b"))
    assert (small.model.num_layers, large.model.num_layers) == (6, 36)
    assert small.train == large.train
    with pytest.raises(ProtlmError, match="has the variants 8m, 35m, 150m, 650m, 3b, not '15b'"):
        load("esm2_uniref50.py:15b")


def test_a_later_phase_starts_from_the_one_before() -> None:
    first, second = load("prot_bert_uniref100.py")
    assert first.config.init_from is None
    assert second.config.init_from == str(first.folder) == "runs/w/1-length512"
    assert second.config.init_what == "state"
    assert load("prot_albert.py")[1].config.init_what == "params"


def test_the_command_line_speaks_to_all_phases_or_to_one() -> None:
    one = ("data.fasta=all", "phases.length2048.train.steps=7", "train.batch_size=8")
    first, second = (phase.config for phase in load("prot_bert_uniref100.py", *one))
    assert (first.train.steps, second.train.steps) == (300_000, 7)
    assert first.train.batch_size == second.train.batch_size == 8
    assert second.schedule.first_step == 300_000 and second.schedule.total_steps == 300_007
    both = ("phases.bfd.data.fasta=a", "phases.uniref50.data.fasta=b")
    assert [p.config.data.fasta for p in load("prot_t5_xxl_uniref50.py", *both)] == ["a", "b"]
    assert [p.config.model.dropout_rate for p in load("prot_t5_xxl_uniref50.py", *both)] == [0, 0.1]
    with pytest.raises(ProtlmError, match="needs --config.phases.uniref50.data.fasta="):
        load("prot_t5_xl_uniref50.py", *both[:1])
    with pytest.raises(ProtlmError, match="no such phase; there are length512, length2048"):
        load("prot_bert_bfd.py", "phases.third.train.steps=7")


def test_the_second_part_alone_wants_a_model() -> None:
    with pytest.raises(ProtlmError, match="needs --config.init_from=...: the model trained on BFD"):
        load("prot_t5_xl_uniref50.py:uniref50")
    with pytest.raises(ProtlmError, match="variants both, uniref50, not 'bfd'"):
        load("prot_t5_xl_uniref50.py:bfd")


GOOD = {"name": "a", "config": {}}
LATER = {"name": "b", "config": {}, "optimizer": "keep", "schedule": "continue"}


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"config": {}}], "phase 1: a phase needs a name of small letters"),
        ([GOOD, {**LATER, "name": "a"}], "phase a: another phase has the same name"),
        ([LATER], "the first phase has no state to keep"),
        ([GOOD, GOOD | {"name": "b"}], "it needs config, name, optimizer, schedule"),
        ([GOOD, LATER | {"optimizer": "drop"}], "optimizer is 'drop'; choose 'keep' or 'reset'"),
        ([{"name": "a", "config": {"trian": {}}}], "config.trian does not exist; did you mean"),
        (5, "config.phases is 5; it must be a list of dicts"),
        ([], "config.phases is empty"),
        ([GOOD | {"name": 5}], "phase 1: a phase needs a name of small letters"),
        ([GOOD | {"config": 5}], "phase a: config is 5; it must be a dict"),
        ([GOOD | {"config": {"train": 5}}], "config.phases.a.train is 5; it must be a section"),
    ],
)
def test_phases_that_are_not_described_well(
    tmp_path: Path, phases: list[dict], message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        f"import runpy\ntiny = runpy.run_path({str(CONFIGS / 'tiny.py')!r})['get_config']\n"
        f"def get_config():\n    config = tiny('bert')\n    config.phases = {phases!r}\n"
        f"    return config\n"
    )
    with pytest.raises(ProtlmError) as caught:
        load_recipe(str(file), [], tmp_path)
    assert message in str(caught.value)
