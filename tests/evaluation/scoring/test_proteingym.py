"""`protlm score --proteingym`: a folder shaped like the benchmark's, its numbers and its faults."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from scored import WILDTYPE, effect, rows_of
from zoo import loaded

from protlm_jax import cli, huggingface
from protlm_jax.evaluation.scoring import files
from protlm_jax.models.loaded import LoadedModel

ASSAYS = {  # protein, function, MSA depth, taxon
    "A_1": ("PA", "Activity", "low", "Human"),
    "A_2": ("PA", "Activity", "Low", "Human"),
    "A_3": ("PA", "Stability", "Low", "Human"),
    "B_1": ("PB", "Activity", "High", "Virus"),
    "C_1": ("PC", "Activity", "High", "Human"),
    "outside": ("PD", "Stability", "Medium", "Virus"),
    "one_class": ("PE", "Binding", "Medium", "Human"),
    "absent": ("PF", "Activity", "Low", "Human"),
    "no_wildtype": ("PG", "Activity", "Low", "Human"),
}


def mutants(seed: int, count: int = 24) -> list[str]:
    """Of one to six substitutions; some assays have several."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        at = sorted(random.choice(len(WILDTYPE), random.integers(1, 7), replace=False))
        new = ["ACDEFGHIKLMNPQRSTVWY".replace(WILDTYPE[i], "")[random.integers(19)] for i in at]
        found.append(":".join(f"{WILDTYPE[i]}{i + 1}{n}" for i, n in zip(at, new, strict=True)))
    return found


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A folder with assays that are right, and one for each fault."""
    folder, random = tmp_path / "gym", np.random.default_rng(0)
    (folder / "reference_files").mkdir(parents=True)
    (folder / "DMS_ProteinGym_substitutions").mkdir()
    columns = ["DMS_id", "DMS_filename", "target_seq", "UniProt_ID", "coarse_selection_type"]
    with (folder / "reference_files" / "DMS_substitutions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "MSA_Neff_L_category", "taxon"])
        for name, (protein, function, *rest) in ASSAYS.items():
            target = "" if name == "no_wildtype" else WILDTYPE
            writer.writerow([name, f"{name}.csv", target, protein, function, *rest])
    for seed, name in enumerate(ASSAYS):
        rows = [[m, f"{random.normal():.4f}", random.integers(2)] for m in mutants(seed)]
        if name == "outside":
            rows[3][0], rows[4][1] = "K99A", "NaN"
        if name == "one_class":
            rows = [[m, d, 1] for m, d, _ in rows]
        if name != "absent":
            file = folder / "DMS_ProteinGym_substitutions" / f"{name}.csv"
            with file.open("w", newline="") as opened:
                csv.writer(opened).writerows([["mutant", "DMS_score", "DMS_score_bin"], *rows])
    return folder


def command(benchmark: Path, *more: str) -> list[str]:
    output = benchmark.parent / "out"
    return ["score", "--model", "m", "--proteingym", str(benchmark), "--output", str(output), *more]


def official(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The means as ProteinGym's script computes them, with pandas."""
    protein = table.groupby(["protein", "function"])["Spearman"].mean()
    classes = protein.groupby("function").mean()
    found = {("all", ""): classes.mean(), **{("function", k): v for k, v in classes.items()}}
    for name in ("MSA depth", "taxon"):
        means = table.groupby(["protein", name])["Spearman"].mean().groupby(name).mean()
        found |= {(name, key): value for key, value in means.items()}
    for depth in ("1", "2", "3", "4", "5+"):
        means = table.groupby(["protein", "function"])[depth].mean()
        found["mutations", depth] = means.mean()
    return found


def test_means_are_the_official_ones_and_faults_are_named(benchmark, monkeypatch, capsys) -> None:
    model = loaded("bert")
    monkeypatch.setattr(huggingface, "load_model", lambda path, mesh=None: model)
    calls: list[int] = []

    def random_effects(loaded: LoadedModel, variants: list, **_: object) -> np.ndarray:
        calls.append(len(variants))
        if len(calls) == 3:
            raise KeyboardInterrupt
        scores = np.random.default_rng(len(calls)).normal(size=len(variants))
        scores[2] = -np.inf if len(calls) == 2 else scores[2]
        return scores

    monkeypatch.setattr(files, "effects", random_effects)
    assert cli.main(command(benchmark)) == 130
    assert cli.main(command(benchmark)) == 3
    done = [len(calls), capsys.readouterr().out]
    assert done[0] == 8  # seven assays and the one that was interrupted: finished ones stay
    for part in (
        "no_wildtype: ", "target_seq is empty",
        "absent: its file 'absent.csv' is missing",
        "outside: 1 variants without a score", "K99A: position 99 is outside of the wild type",
        "outside: 1 variants without a number in DMS_score",
        "one_class: AUC is not defined: DMS_score_bin has one class",
        "A_2: 1 variants without a score", "line 4: the score is not finite",
        "7 of 9 assays", "masked-marginals-additive",
    ):  # fmt: skip
        assert part in done[1]

    output = benchmark.parent / "out"
    table = pd.read_csv(output / "assays.csv").set_index("DMS_id")
    for name in ASSAYS:
        if not np.isnan(table["Spearman"][name]):
            scores = pd.read_csv(output / "assays" / f"{name}.csv")
            used = scores.dropna(subset=["score", "DMS_score"])
            expected = spearmanr(used["score"], used["DMS_score"]).statistic
            assert table["Spearman"][name] == pytest.approx(expected, abs=1e-6)
            depth = used["mutant"].str.count(":") + 1
            single = spearmanr(*used[depth >= 5][["score", "DMS_score"]].T.to_numpy()).statistic
            assert table["5+"][name] == pytest.approx(single, abs=1e-6)
            if name != "one_class":
                ones = used["DMS_score_bin"] == 1
                pairs = used["score"][ones].to_numpy()[:, None] - used["score"][~ones].to_numpy()
                assert table["AUC"][name] == pytest.approx((pairs > 0).mean(), abs=1e-6)
    found = {(r["mean"], r["group"]): r for r in rows_of(output / "summary.csv")}
    expected = official(table)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert float(found[key]["Spearman"]) == pytest.approx(value, abs=1e-9)
    assert (found["function", "Activity"]["assays"], found["function", "Activity"]["proteins"]) == (
        "4", "3",
    )  # fmt: skip

    assert cli.main(command(benchmark)) == 3  # nothing is scored again
    assert len(calls) == done[0]
    assert cli.main(command(benchmark, "--exit", "1")) == 1
    assert "other settings" in capsys.readouterr().err


def test_scores_are_those_of_the_model_at_the_asked_depth(benchmark, monkeypatch) -> None:
    model = loaded("bert")
    monkeypatch.setattr(huggingface, "load_model", lambda path, mesh=None: model)
    folder = benchmark / "DMS_ProteinGym_substitutions"
    for file in folder.iterdir():
        if file.name != "A_1.csv":
            file.unlink()
    text = "mutant,DMS_score\nK2R,1\nA4G,2\nK2R:A4G,3\n"
    (folder / "A_1.csv").write_text(text)
    output, last = benchmark.parent / "out" / "assays" / "A_1.csv", model.config.num_layers
    assert cli.main(command(benchmark, "--exit", str(last))) == 3
    scores = [float(row["score"]) for row in rows_of(output)]
    single = [effect("K2R"), effect("A4G")]
    assert scores == pytest.approx([*single, sum(single)], abs=1e-5)
    assert cli.main([*command(benchmark, "--exit", "1"), "--output", str(output.parents[2])]) == 1
    shallow = benchmark.parent / "shallow"
    assert cli.main([*command(benchmark, "--exit", "1"), "--output", str(shallow)]) == 3
    assert [float(r["score"]) for r in rows_of(shallow / "assays" / "A_1.csv")] != scores
    assert cli.main(command(benchmark, "--exit", str(last + 1))) == 1
