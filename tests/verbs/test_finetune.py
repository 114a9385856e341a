"""`protlm finetune`, and what other verbs make of its runs."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from zoo import ZOO

from protlm_jax import models
from protlm_jax.cli import main
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.tuned import without_middles
from protlm_jax.huggingface import export, load_model
from protlm_jax.huggingface.tuned import TASK
from protlm_jax.models import LoadedModel
from protlm_jax.storage.owner import owned
from protlm_jax.training.metrics import read_metrics
from protlm_jax.verbs.finetune import load_tuned
from protlm_jax.vocabularies import get_vocabulary

ROWS = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and labels that depend on the residues: of proteins and of each residue."""
    folder = tmp_path_factory.mktemp("finetune")
    for family in ("bert", "gpt2"):
        fresh = models.build(ZOO[family].config)
        model = LoadedModel(fresh, models.init_params(fresh, 0),
                            get_vocabulary(ZOO[family].config.vocabulary), family)  # fmt: skip
        export(model, folder / family)
    rng = random.Random(0)
    with (folder / "whole.csv").open("w") as whole, (folder / "each.csv").open("w") as each:
        print("id,sequence,split,kind,value", file=whole)
        print("id,sequence,split,states", file=each)
        for i in range(ROWS):
            split = "test" if i % 4 == 0 else "valid" if i % 4 == 1 else "train"
            letters = "AGILV" if i % 3 else "DEKRN"
            sequence = "".join(rng.choices(letters + "MF", k=rng.randint(12, 40)))
            kind = "" if i == 7 else "greasy" if i % 3 else "charged"
            print(f"p{i},{sequence},{split},{kind},{sequence.count('A')}.5", file=whole)
            states = "".join("H" if c in "AEKM" else "C" for c in sequence)
            print(f"p{i},{sequence},{split},{states}", file=each)
    return folder


def finetune(place: Path, workdir: Path, family: str, table: str, *more: str) -> int:
    return main([
        "finetune", "--model", str(place / family), "--input", str(place / f"{table}.csv"),
        "--workdir", str(workdir), "--config.train.steps=60", "--config.train.evaluate_every=20",
        "--config.train.checkpoint_every=20", "--config.train.batch_size=4",
        "--config.schedule.warmup_steps=1", "--config.schedule.learning_rate=0.02",
        "--config.objective.dropout=0.0", "--config.mesh.data=1", *more,
    ])  # fmt: skip


def scores(workdir: Path) -> dict[tuple[str, str, str], float]:
    with (workdir / "scores.csv").open() as file:
        return {(r["model"], r["target"], r["metric"]): float(r["value"] or "nan")
                for r in csv.DictReader(file)}  # fmt: skip


def evaluations(workdir: Path) -> dict[int, float]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return {m["step"]: m["heldout/loss"] for m in lines if "heldout/loss" in m}


@pytest.fixture(scope="module")
def each(place: Path) -> Path:
    """A run on residues, with adapters."""
    assert finetune(place, place / "each", "bert", "each") == 0
    return place / "each"


def test_residues_are_learned_and_predicted(place: Path, each: Path) -> None:
    assert scores(each)["fine-tuned", "states", "accuracy"] > 0.9
    losses = list(evaluations(each).values())
    assert len(losses) == 4 and losses[-1] < 0.5 * losses[0]
    (place / "new.fasta").write_text(">a\nAAGGEE\n>b\nMK1L\n")
    output = place / "new.csv"
    command = ["predict", "--model", str(each), "--input", str(place / "new.fasta")]
    assert main([*command, "--output", str(output)]) == 3
    with output.open() as file:
        first, second = csv.DictReader(file)
    assert first["states"] == "HHCCHH" and second["id"] == "b" and second["error"]


def test_a_folder_belongs_to_one_process_and_to_its_labels(
    place: Path, each: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, made = (each / "labels.npz").read_bytes(), scores(each)
    assert finetune(place, each, "bert", "whole") == 1
    assert "holds a model tuned on other labels" in capsys.readouterr().err
    assert (each / "labels.npz").read_bytes() == labels
    with owned(each / TASK):
        assert finetune(place, each, "bert", "each") == 1
    assert "is being written by process" in capsys.readouterr().err
    assert finetune(place, each, "bert", "each") == 0 and scores(each) == made


def test_an_adapter_goes_to_peft_and_back(place: Path, each: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    assert main(["export", "--model", str(each), "--format", "peft", "--output", str(folder)]) == 0
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["task_type"] == "TOKEN_CLS" and fields["modules_to_save"]
    ours, theirs = load_model(each), load_model(folder)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), ours.params, theirs.params
    )
    assert "classifier.weight: a head of the task" in theirs.left

    stem = "base_model.model.bert.encoder.layer.1.attention.self.query"
    file, whole = (
        folder / "adapter_model.safetensors",
        load_file(folder / "adapter_model.safetensors"),
    )
    bare = {name.replace(".bert.", "."): x for name, x in whole.items()}
    a = whole[f"{stem}.lora_A.weight"]
    for changed, said in (
        (bare, r"lora_A.weight has no 'bert.' after 'base_model.model.', .* does nothing"),
        (whole | {f"{stem}.lora_A.weight": a[:3]}, rf"{stem}.lora_A.weight has shape \[3, 16\]"),
        ({n: x for n, x in whole.items() if n != f"{stem}.lora_B.weight"}, "lora_B.weight is mi"),
        ({n: x for n, x in whole.items() if "classifier" not in n}, "its head is missing"),
        ({n.replace("layer.1", "layer.7"): x for n, x in whole.items()}, "layer.7.* no tensor of"),
    ):
        save_file(changed, file)
        with pytest.raises(ProtlmError, match=said):
            load_model(folder)


def test_proteins_with_missing_labels_classes_and_numbers(place: Path, tmp_path: Path) -> None:
    more = ("--config.train.patience=1", "--class_weights", "--baselines", "probe,random")
    workdir = tmp_path / "whole"
    assert finetune(place, workdir, "gpt2", "whole", "--config", "finetune:full", *more) == 0
    found = scores(workdir)
    assert found["fine-tuned", "kind", "accuracy"] > 0.9
    assert found["fine-tuned", "value", "spearman"] > 0.3
    assert ("fine-tuned minus random", "value", "spearman") in found
    assert ("fine-tuned minus probe", "kind", "accuracy") in found
    found = evaluations(workdir)
    lowest = min(list(found)[1:], key=lambda step: found[step])
    assert load_model(workdir).name == f"whole, step {lowest}"
    merged = tmp_path / "merged"
    assert main(["export", "--model", str(workdir), "--output", str(merged)]) == 0
    assert load_file(merged / "head.safetensors")["out_kernel"].shape == (16, 3)
    tuned = load_tuned(str(workdir))
    (short,) = (values for _, values in tuned.predict({"x": "AAAAA"}))
    assert short["kind"].shape == (1, 2) and short["value"].shape == (1,)
    again = finetune(place, workdir, "gpt2", "whole", "--config", "finetune:full", *more[:-2])
    assert again == 0, "a finished run is scored again"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("z,MKV,test,C", "is in line 2 too|used in line 2|every protein its own id"),
        ("y,MKVA,train,CC", "2 labels|has 2"),
    ],
)
def test_bad_labels_are_named(
    place: Path, tmp_path: Path, capsys: Any, line: str, said: str
) -> None:
    table = "id,sequence,split,states\nz,MKVAL,train,HHCCC\nw,MK,valid,HC\nv,MKV,test,HCC\n"
    (tmp_path / "bad.csv").write_text(table + line + "\n")
    shutil.copytree(place / "bert", tmp_path / "bert")
    assert finetune(tmp_path, tmp_path / "run", "bert", "bad") == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(said, error), error


def test_proteins_without_their_middle_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    assert without_middles(["ACDEFGH", "ACD"], 5) == ["ACDGH", "ACD"]
    assert "1 of 2 proteins are longer than 5 residues" in caplog.text
