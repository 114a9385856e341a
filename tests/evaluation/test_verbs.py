"""What the verbs take for granted of a run, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from zoo import ZOO

from protlm_jax import cli, huggingface
from protlm_jax.data.config import DataConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import verbs
from protlm_jax.evaluation.embedding.sequences import embed_sequences


def test_the_trained_length_is_a_row_and_its_memory_within_the_position_table(small_model) -> None:
    assert verbs.trained_length(small_model("t5"), DataConfig(length=48)) == 48
    assert verbs.trained_length(small_model("bert", max_positions=40), DataConfig(length=48)) == 40
    remembering = small_model("transformer_xl")
    memory = ZOO["transformer_xl"].config.memory_length
    assert memory > 0
    assert verbs.trained_length(remembering, DataConfig(length=48)) == 48 + memory


@pytest.mark.parametrize("task", ["span3", "ankh"])
def test_a_model_of_spans_is_not_asked_in_a_form_it_never_saw(small_model, task) -> None:
    with pytest.raises(ProtlmError, match=f"trained on data.task='{task}'.*metrics.jsonl"):
        verbs.evaluate(small_model("t5"), DataConfig(task=task))


def test_the_data_of_a_run_are_found_from_its_folder_and_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"data": {"length": 77, "task": "span3"}}))
    for path in (tmp_path, tmp_path / "checkpoints" / "5"):
        assert verbs.data_of(path) == DataConfig(length=77, task="span3")
    assert verbs.data_of(tmp_path / "checkpoints") == DataConfig()


def test_all_proteins_that_are_refused_are_named(
    small_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the first alone, in the verbs that need all proteins."""
    model = small_model("bert")
    monkeypatch.setattr(huggingface, "load_model", lambda *_: model)
    sequences = {"a": "MKTU", "b": "MKTAYI", "c": "MOUU"} | {f"d{i}": "MB" for i in range(20)}
    fasta, table = tmp_path / "x.fasta", tmp_path / "x.csv"
    fasta.write_text("".join(f">{name}\n{s}\n" for name, s in sequences.items()))
    rows = [f"{name},{s},train,{i}" for i, (name, s) in enumerate(sequences.items())]
    rows += ["v,MKTA,valid,1", "t,MKTO,test,2"]
    table.write_text("\n".join(["id,sequence,split,label", *rows]))
    for words in (
        ["evaluate", "--fasta", str(fasta)],
        ["depth", "--input", str(fasta)],
        ["probe", "--input", str(table)],
    ):
        assert cli.main([*words, "--model", "m", "--rare_residues", "error"]) == 1
        lines = capsys.readouterr().err.splitlines()
        refused = 23 if words[0] == "probe" else 22
        assert lines[0] == f"error: {refused} records cannot be used"
        assert len(lines) == 12 and lines[-1] == f"  and {refused - 10} more"
        assert "'a', position 4: 'U' is a rare residue" in lines[1]
        assert "'c', position 2: 'O' is a rare residue" in lines[2]


def test_what_is_refused_in_memory_is_named_in_one_error(small_model) -> None:
    refused = "2 records.*\n.*'a', position 4.*\n.*'c', position 1"
    with pytest.raises(ProtlmError, match=refused):
        embed_sequences(small_model("bert"), {"a": "MKT9", "b": "MKTAYI", "c": "JKT"})
