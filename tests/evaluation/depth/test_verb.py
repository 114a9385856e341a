"""From the command's arguments to files; going on; what is kept by protein."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import partial, verb
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.metrics import METRICS, resolve
from protlm_jax.vocabularies import AMINO_ACIDS

METRIC = "contributions"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "proteins.fasta"
    path.write_text(
        "".join(f">p{i}\n{''.join(rng.choice(list(AMINO_ACIDS), 21))}\n" for i in range(20))
    )
    return path


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser, "a model")
    verb.run(parser.parse_args(words), loaded)


def test_models_are_written_side_by_side(fasta: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = ("--model", "bert", "--input", str(fasta), "--output", str(out))
    run(*words, "--control", "--metrics", METRIC, "similarity")
    assert "wrote" in capsys.readouterr().out
    names = {"bert", "bert-reinitialised"}
    assert {p.name for p in out.glob("*.npz")} == {f"{name}.npz" for name in names}
    rows = list(csv.DictReader((out / "depth.csv").open()))
    assert {row["model"] for row in rows} == names
    about = json.loads((out / "bert.json").read_text())["stacks"]["encoder"]
    arrays = np.load(out / "bert.npz")
    for name, dims in about["dims"].items():
        assert arrays[f"encoder/{name}"].ndim == len(dims), name
    mean = arrays["encoder/cosine/totals"].sum(-1) / arrays["encoder/cosine/counts"].sum(-1)
    np.testing.assert_allclose(arrays["encoder/cosine"], mean)
    mine = [r for r in rows if r["model"] == "bert" and r["quantity"] == "cosine"]
    assert [r["part"] for r in mine] == [p for p in about["coords"]["part"] for _ in range(2)]
    for row, value in zip(mine, mean.ravel(), strict=True):
        assert float(row["value"]) == pytest.approx(value)
        assert float(row["low"]) <= value <= float(row["high"])
    assert [r["relative"] for r in mine] == ["0.0", "1.0"] * 3


def test_a_run_that_was_cut_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    sequences = {f"p{i}": "".join(rng.choice(list(AMINO_ACIDS), 21)) for i in range(20)}
    monkeypatch.setattr(partial, "EVERY", 0.0)
    model = loaded("bert")
    wanted = {"metrics": [METRIC, "similarity"], "folder": tmp_path}
    whole = analyse(model, sequences, **wanted).stacks["encoder"]
    save = partial.Partial.save

    def cut(self, totals, samples, batches) -> None:
        save(self, totals, samples, batches)
        if batches == 2:
            raise KeyboardInterrupt

    (tmp_path / "encoder.npz").unlink()
    monkeypatch.setattr(partial.Partial, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        analyse(model, sequences, **wanted)
    seen: list[int] = []
    monkeypatch.setattr(partial.Partial, "save", lambda self, t, s, batches: seen.append(batches))
    again = analyse(model, sequences, **wanted).stacks["encoder"]
    assert seen == [3], "two of three batches were kept"
    for name, x in whole.quantities.items():
        np.testing.assert_array_equal(again[name].values, x.values)
    analyse(model, sequences, **wanted, seed=1)
    assert seen == [3, 1, 2, 3], "other settings start anew"


def test_the_bootstrap_draws_proteins() -> None:
    rng = np.random.default_rng(2)
    sequences = {f"p{i}": "".join(rng.choice(list(AMINO_ACIDS), 21)) for i in range(20)}
    found = analyse(loaded("bert"), sequences, metrics=[METRIC]).stacks["encoder"]["stream_norm"]
    by_protein = found.totals / found.counts
    low, high = found.interval()
    error = by_protein.std(axis=-1) / 20**0.5  # proteins have three asked residues each
    np.testing.assert_allclose((high - low) / 2, 1.96 * error, rtol=0.2)
    assert (low < found.values).all() and (found.values < high).all()


def test_metrics_have_names() -> None:
    assert resolve("all") == tuple(METRICS)
    assert resolve(["skips", "skips"]) == resolve("skips") == ("skips",)
    with pytest.raises(ProtlmError, match="no depth metric 'skip'; choose default, all, or"):
        resolve(["skip"])
