"""`protlm configs`: what is listed, what is printed, and names that work from any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protlm_jax.cli import main
from protlm_jax.config.files import CONFIGS, load_config


def test_every_config_is_listed_with_its_size_data_steps_and_hardware(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["configs", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name.partition(":")[0] for name in rows} == {f.stem for f in CONFIGS.glob("*.py")}
    assert rows["prot_t5_xl_uniref50:both"] == {
        "name": "prot_t5_xl_uniref50:both",
        "parameters": 2_818_830_336,
        "data": "BFD + UniRef50",
        "steps x rows": "1,200,000 x 4,096 + 991,500 x 2,048",
        "hardware": "TPU pods v3-1024 and then v2-256",
    }
    assert all(row["data"] and row["steps x rows"] and row["hardware"] for row in rows.values())


def test_one_config_is_printed_with_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "tiny:t5", "--config.train.steps=7"]) == 0
    expected = load_config("tiny:t5", ["train.steps=7"]).to_dict()
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected))
    assert main(["configs", "prot_bert_bfd"]) == 0
    phases = json.loads(capsys.readouterr().out)
    assert [phases[name]["data"]["length"] for name in ("length512", "length2048")] == [512, 2048]
    assert phases["length512"]["data"]["fasta"].startswith("<a FASTA file of BFD")
    assert main(["configs", "adapt"]) == 1
    assert "adapt needs --config.init_from=" in capsys.readouterr().err


def test_a_name_is_found_from_any_folder_and_a_wrong_one_lists_close_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # a run's folder, perhaps
    named = load_config("tiny:esm2", [])
    for spec in ("tiny.py:esm2", "configs/tiny.py:esm2", f"{CONFIGS}/tiny.py:esm2"):
        assert load_config(spec, []) == named
    (tmp_path / "tiny.py").write_text((CONFIGS / "adapt.py").read_text())  # one's own comes first
    assert main(["configs", "tiny.py"]) == 1
    assert "tiny.py needs --config.init_from=" in capsys.readouterr().err
    assert main(["configs", "prot_t5_xl"]) == 1
    assert "did you mean prot_t5_xl_bfd or prot_t5_xxl_bfd or" in capsys.readouterr().err
    assert main(["configs", "--gin"]) == 0
    package, recipes = map(Path, capsys.readouterr().out.strip().split(","))
    assert (package / "gin/runs/pretrain.gin").is_file()
    assert (recipes / "prot_t5_tiny.gin").is_file()
