"""From the command's arguments to files; going on; what is kept by protein."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import pytest
import xarray
from depth_rows import proteins
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import sweep, verb
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.metrics import METRICS, resolve
from protlm_jax.evaluation.depth.results import interval, quantity, separate, undefined
from protlm_jax.evaluation.results import read
from protlm_jax.storage.digests import Damaged, verify
from protlm_jax.storage.json_files import read_json

METRIC = "contributions"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.fasta"
    path.write_text("".join(f">{name}\n{s}\n" for name, s in proteins(20).items()))
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
    assert (out / "report.html").stat().st_size > 10_000
    names = {"bert", "bert-reinitialised"}
    stacks = {one.attrs["model"]: one for one in separate(read(out / "results.nc"))}
    assert set(stacks) == names
    rows = list(csv.DictReader((out / "depth.csv").open()))
    assert {row["model"] for row in rows} == names
    cosine = stacks["bert"]["cosine"]
    assert cosine.dims == ("part", "layer") and cosine.attrs["units"] == "1"
    sums = (stacks["bert"][f"cosine_{part}"].sum("protein") for part in ("total", "count"))
    mean = np.divide(*(x.values for x in sums))
    np.testing.assert_allclose(cosine, mean)
    mine = [r for r in rows if r["model"] == "bert" and r["quantity"] == "cosine"]
    assert [r["part"] for r in mine] == [p for p in cosine["part"].values for _ in range(2)]
    for row, value in zip(mine, mean.ravel(), strict=True):
        assert float(row["value"]) == pytest.approx(value)
        assert float(row["low"]) <= value <= float(row["high"])
    assert [r["relative"] for r in mine] == ["0.0", "1.0"] * 3
    claimed = list(csv.DictReader((out / "claims.csv").open()))
    assert {r["name"] for r in claimed if r["model"] == "bert"} >= {"late_contribution"}


@pytest.mark.parametrize(
    ("metrics", "number", "steps"),
    [([METRIC, "similarity"], 20, 3), (["erasure"], 20, 3), (["tuned_lens"], 32, 12)],
    ids=["streamed", "erasure", "tuned_lens"],
)
def test_a_run_that_was_cut_goes_on_to_the_same_numbers(
    metrics: list[str], number: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, and of the tuned lens turns of its training, that are kept are not done again."""
    monkeypatch.setattr(sweep, "PART_SECONDS", 0.0)
    model, sequences = loaded("bert"), proteins(number)
    wanted = {"metrics": metrics, "folder": tmp_path}
    whole = analyse(model, sequences, **wanted)["encoder"]
    for file in tmp_path.iterdir():
        file.unlink()
    save = sweep.Part.save
    mine = "encoder.json" if len(metrics) > 1 else f"encoder-{metrics[0]}.json"

    def cut(self, done, arrays) -> None:
        save(self, done, arrays)
        if done == 2 and self.note.name == mine:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep.Part, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        analyse(model, sequences, **wanted)
    seen: list[int] = []
    monkeypatch.setattr(
        sweep.Part,
        "save",
        lambda self, done, _: seen.append(done) if self.note.name == mine else None,
    )
    again = analyse(model, sequences, **wanted)["encoder"]
    assert seen == list(range(3, steps + 1)), "what was kept was taken over"
    xarray.testing.assert_equal(again, whole)
    if metrics != ["tuned_lens"]:
        analyse(model, sequences, **wanted, seed=1)
        assert seen[steps - 2 :] == list(range(1, steps + 1)), "other settings start anew"


def test_what_is_kept_is_checked_and_removed_at_the_end(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "PART_SECONDS", 0.0)
    out = tmp_path / "out"
    words = ("--model", "bert", "--input", str(fasta), "--output", str(out), "--metrics", METRIC)
    written = verb._written

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "_written", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    kept = out / ".work" / "bert" / "encoder-3.nc"
    note = kept.with_name("encoder.json")
    settings = read_json(note)["settings"]
    content, rng = kept.read_bytes(), np.random.default_rng(0)
    for at in (3, 40, *rng.integers(len(content), size=30)):
        kept.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        caplog.clear()
        assert sweep.Part(note, settings).load()[0] == 0, at
        assert "encoder is damaged: it is measured from the beginning" in caplog.text
    kept.write_bytes(content)
    edited = fasta.read_text().replace("A", "G")
    steps: list[int] = []
    save = sweep.Part.save
    monkeypatch.setattr(sweep.Part, "save", lambda s, n, a: steps.append(n) or save(s, n, a))
    monkeypatch.setattr(verb, "_written", written)
    run(*words)
    assert steps == [], "what was kept was taken over"
    assert not (out / ".work").exists()
    verify(out)
    names = {p.name for p in out.iterdir()}
    assert names == {
        "results.nc", "depth.csv", "claims.csv", "report.html", "digests.json",
    }  # fmt: skip
    (out / "mine.txt").write_text("of the user")
    verify(out)
    content = (out / "results.nc").read_bytes()
    for at in rng.integers(len(content), size=20):
        (out / "results.nc").write_bytes(
            content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :]
        )
        with pytest.raises(Damaged, match="the content of results.nc has changed"):
            verify(out)

    monkeypatch.setattr(verb, "_written", killed)
    for text in (fasta.read_text(), edited):  # the same names and lengths
        fasta.write_text(text)
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            run(*words)
        assert steps == [1, 2, 3]


@pytest.mark.parametrize("positions", ["asked", pytest.param("future", marks=pytest.mark.slow)])
def test_costly_measurements_are_asked_for_by_name(
    fasta: Path, tmp_path: Path, positions: str
) -> None:
    """They take the position set; a model of two layers is looked at before both."""
    out = tmp_path / "out"
    words = ("--model", "gpt2", "--input", str(fasta), "--output", str(out))
    run(*words, "--metrics", "erasure", "gradients", "tuned_lens", "--positions", positions)
    (measured,) = separate(read(out / "results.nc"))
    assert measured["at_depth"].values.tolist() == [0, 1]
    assert undefined(measured) == {"tuned_lens": "needs four batches of proteins"}
    assert ("before a cut" in measured.attrs["positions"]) == (positions == "future")
    share, erased = (measured[name].values for name in ("context_share", "erasure_kl"))
    assert share.shape == erased.shape == (2,)
    assert share.min() > 0 and share.max() < 1 and (erased > 0).all()
    counts = measured["erasure_kl_count"]
    # Four residues are erased; answers are read at 3 asked ones, or at 10 of 21, from token 11 on.
    assert (counts == 4 * (3 if positions == "asked" else 10)).all()


def test_levels_of_noise_are_a_dimension_of_the_files(fasta: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--model", "dplm", "--model", "gpt2", "--input", str(fasta), "--output", str(out))
    run(*words, "--metrics", METRIC, "--noise_levels", "0.25", "0.75")
    (noisy,) = separate(read(out / "noise.nc"))
    assert noisy["noise"].values.tolist() == [0.25, 0.75]
    assert noisy["cosine"].dims == ("noise", "part", "layer")
    rows = list(csv.DictReader((out / "depth.csv").open()))
    mine = [r for r in rows if r["noise"] and r["quantity"] == "stream_norm"]
    assert [(r["noise"], r["layer"]) for r in mine] == [
        (level, depth) for level in ("0.25", "0.75") for depth in "012"
    ]
    assert {r["model"] for r in rows if r["noise"]} == {"dplm"}
    causal = separate(read(out / "results.nc"))[1]
    assert "its readout is causal" in undefined(causal)["noise_levels"]


def test_the_bootstrap_draws_proteins() -> None:
    found = analyse(loaded("bert"), proteins(20), metrics=[METRIC])["encoder"]
    x = quantity(found, "stream_norm")
    low, high = interval(x)
    error = (x.total / x.count).std(axis=-1) / 20**0.5  # proteins have three asked residues each
    np.testing.assert_allclose((high - low) / 2, 1.96 * error, rtol=0.2)
    assert (low < x.mean).all() and (x.mean < high).all()


def test_metrics_have_names() -> None:
    assert resolve("all") == tuple(METRICS)
    assert resolve(["skips", "skips"]) == resolve("skips") == ("skips",)
    with pytest.raises(ProtlmError, match="no depth metric 'skip'; choose default, all, or"):
        resolve(["skip"])
