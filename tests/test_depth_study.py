"""The study of depth at toy size: from proteins to tables, and going on where it stopped."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.heldout import hide
from protlm_jax.vocabularies import AMINO_ACIDS

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = (
    *("model.num_layers=2", "model.d_model=8", "model.num_heads=2", "model.head_dim=4"),
    *("model.d_ff=16", "data.length=24", "data.heldout_percent=50.0", "train.batch_size=8"),
    *("train.steps=3", "train.log_every=1", "schedule.warmup_steps=1"),
)


@pytest.fixture(scope="module")
def module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("depth_study")


def proteins(count: int) -> dict[str, str]:
    rng = np.random.default_rng(0)
    return {f"p{i}": "M" + "".join(rng.choice(list(AMINO_ACIDS), 29)) for i in range(count)}


@pytest.fixture(scope="module")
def toy(module: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("study")
    fasta = folder / "proteins.fasta"
    fasta.write_text("".join(f">{name}\n{s}\n" for name, s in proteins(60).items()))
    study = module.Study(
        arms=("shallow", "deep_wide"),
        overrides=(*TINY, f"data.fasta={fasta}"),
        seeds=(0, 1),
        rates=(1e-2,),
        validation_percent=25.0,
        proteins=4,
    )
    return study, folder / "out"


@pytest.fixture(scope="module")
def results(module: Any, toy: tuple[Any, Path]) -> dict[str, Any]:
    made: dict[str, Path] = {}
    train = module.train

    def train_once(config: Any, folder: Path) -> None:
        """The arms are one model here: what one of them has trained is the other's too."""
        first = made.setdefault(str(config), folder)
        if first == folder:
            train(config, folder)
        elif not folder.exists():
            shutil.copytree(first, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", train_once)
        return module.Bench(*toy).run({"again": str(toy[1] / "shallow-rate0.01-seed1")})


def test_arms_are_summed_up_over_their_seeds(results: dict[str, Any], toy: Any) -> None:
    assert json.loads((toy[1] / "results.json").read_text()) == results | {
        "study": json.loads(json.dumps(results["study"])),
        "config": json.loads(json.dumps(results["config"])),
    }
    for arm in results["arms"].values():
        values = [seed["trained"]["numbers"]["nll"] for seed in arm["seeds"].values()]
        assert values[0] != values[1]
        assert arm["trained"]["nll"]["mean"] == pytest.approx(np.mean(values))
        assert arm["trained"]["nll"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        half = 12.7062 * abs(values[0] - values[1]) / 2  # t of one degree of freedom
        assert arm["trained"]["nll"]["half"] == pytest.approx(half, rel=1e-4)
        assert arm["trained - control"]["output_depth_score"]["mean"] != 0
    assert not results["differences"]["deep_wide - shallow"]["nll"]["mean"]  # one model here
    again = results["outside"]["again"]["trained"]
    assert again["numbers"] == results["arms"]["shallow"]["seeds"]["1"]["trained"]["numbers"]


def test_a_second_call_measures_nothing_again(
    module: Any, toy: Any, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "analyse", refuse)
    monkeypatch.setattr(module.heldout, "evaluate", refuse)
    monkeypatch.setattr(module, "train", lambda *_: 0)
    assert module.Bench(*toy).run({})["arms"] == results["arms"]
    other = module.dataclasses.replace(toy[0], proteins=5)
    with pytest.raises(ProtlmError, match="another study"):
        module.Bench(other, toy[1])


def test_the_page_has_tables_and_figures(
    module: Any, results: dict[str, Any], tmp_path: Path
) -> None:
    page = tmp_path / "README.md"
    begin, end = (f"<!-- {x} -->" for x in (
        "tables, written by benchmarks/depth_study.py", "end of tables"))  # fmt: skip
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    module.write_page(results, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    mean = results["arms"]["shallow"]["trained"]["depth_score"]["mean"]
    assert f"| {mean:.3f} ±" in text
    figures = sorted(tmp_path.glob("*.svg"))
    assert {f.stem for f in figures} >= {"loss", "skips", "lens", "map-shallow-trained"}
    for figure in figures:
        assert ElementTree.parse(figure).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("best", "tried"),
    [(4e-3, [2, 4, 8]), (32e-3, [2, 4, 8, 16, 32]), (0.5e-3, [0.5, 1, 2, 4, 8, 0.25])],
)
def test_rates_are_tried_beyond_the_best_end(
    module: Any, best: float, tried: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = object.__new__(module.Bench)
    bench.study = module.Study(rates=(2e-3, 4e-3, 8e-3), most_rates=6 if best < 1e-3 else 5)
    monkeypatch.setattr(bench, "trained", lambda arm, rate, seed: Path(f"{rate:g}"))

    def found(name: str, _: Any) -> dict[str, Any]:
        rate = float(name.removesuffix("-validation"))
        return {"model": {"nll": {"value": abs(np.log(rate / best))}}}

    monkeypatch.setattr(bench, "kept", found)
    assert sorted(bench.tuned("shallow")) == pytest.approx(sorted(1e-3 * r for r in tried))


def test_neighbours_are_counted(module: Any) -> None:
    """Against counters and dictionaries."""
    baselines = importlib.import_module("depth_study_baselines")
    training, test = proteins(40), {"t": "MKTAYIAKQRQISXVKSHFSRQLEERLGLIEVQ"}
    f = dict(zip(AMINO_ACIDS, np.linspace(1, 2, 20) / 30, strict=True))
    pairs = Counter(a + b for s in training.values() for a, b in itertools.pairwise(s))
    smooth = baselines.SMOOTHING

    def given(left: str, right: str, asked: str) -> dict[str, float]:
        """p(asked one | its neighbour), with the asked one written as ?."""
        if "X" in (left, right):
            return f
        counts = {x: pairs[(left + right).replace("?", x)] + smooth * f[x] for x in AMINO_ACIDS}
        return {x: counts[x] / sum(counts.values()) for x in AMINO_ACIDS}

    def loss(p: dict[str, float], true: str) -> float:
        return float(-np.log(p[true] / sum(p.values())))

    sequence, protein = test["t"], hide(test["t"], 3)
    totals: Counter[str] = Counter()
    for i in protein.targets:
        true, k = sequence[i], baselines.COMPOSITION
        left = given(sequence[i - 1], "?", true)
        right = given("?", sequence[i + 1], true) if i + 1 < len(sequence) else f
        others = Counter(sequence[:i] + sequence[i + 1 :])
        own = {x: others[x] + k * f[x] for x in AMINO_ACIDS}
        both = {x: left[x] * right[x] / f[x] for x in AMINO_ACIDS}
        totals["bigram"] += loss(left, true)
        totals["both_neighbours"] += loss(both, true)
        totals["composition"] += loss(own, true)
        totals["composition_and_neighbours"] += loss(
            {x: own[x] * both[x] / f[x] for x in AMINO_ACIDS}, true
        )
    found = baselines.neighbours(training.values(), test, np.array(list(f.values())), 3)
    for name, total in totals.items():
        assert found[name]["value"] == pytest.approx(total / len(protein.targets)), name
