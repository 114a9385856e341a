"""Config files and overrides: typed, and refused in one line where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protlm_jax.config.files import load_config
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import read_architecture

TINY = "configs/tiny.py:bert"


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("train.steps=7", "train", "steps", 7),
        ("schedule.learning_rate=1e-4", "schedule", "learning_rate", 1e-4),
        ("optimizer.weight_decay=1", "optimizer", "weight_decay", 1.0),
        ("data.fasta=my.fasta.gz", "data", "fasta", "my.fasta.gz"),
        ("data.fasta=a=b.fasta", "data", "fasta", "a=b.fasta"),
        ("data.fasta=None", "data", "fasta", None),
        ("data.pack=False", "data", "pack", False),
        ("optimizer.name=lamb", "optimizer", "name", "lamb"),
        ("model.dtype=bfloat16", "model", "dtype", "bfloat16"),
        ("mesh.fsdp=2", "mesh", "fsdp", 2),
        ("objective.rate=0.3", "objective", "rate", 0.3),
    ],
)
def test_an_override_sets_one_field(override: str, section: str, field: str, value: Any) -> None:
    plain, changed = load_config(TINY, []).to_dict(), load_config(TINY, [override]).to_dict()
    assert changed[section][field] == value and type(changed[section][field]) is type(value)
    plain[section][field] = value
    assert changed == plain, "nothing else may change"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=5", "config.train.step does not exist; did you mean train.steps?"),
        ("trian.steps=5", "config.trian does not exist; did you mean train?"),
        ("steps=5", "config.steps does not exist; there are model, objective, data"),
        ("data.colour=red", "config.data.colour does not exist; there are fasta, prepared"),
        ("train=5", "--config.train: overrides are --config.SECTION.FIELD=VALUE"),
        ("train.steps.more=5", "--config.train.steps.more: overrides are"),
        ("train.steps", "--config.train.steps needs a value: --config.train.steps=VALUE"),
        ("train.steps=many", "config.train.steps is 'many'; it must be of type int"),
        ("train.steps=", "config.train.steps is ''; it must be of type int"),
        ("train.steps=1.5", "config.train.steps is 1.5; it must be of type int"),
        ("train.steps=True", "config.train.steps is True; it must be of type int"),
        ("train.steps=0", "train.steps is 0; it must be at least 1"),
        ("train.evaluate_batches=0", "train.evaluate_batches is 0; it must be at least 1"),
        ("train.evaluate_every=-1", "train.evaluate_every is -1; it must be at least 0"),
        ("objective.rate=0", "objective.rate is 0.0; it must be in (0, 1]"),
        ("data.fasta=12", "config.data.fasta is 12; it must be of type str or None"),
        ("data.pack=1", "config.data.pack is 1; it must be of type bool"),
        ("data.rare_residues=drop", "config.data.rare_residues is 'drop'; choose one of 'X', 'k"),
        ("schedule.name=step", "config.schedule.name is 'step'; choose one of 'constant'"),
        ("optimizer.name=sgd", "config.optimizer.name is 'sgd'; choose one of 'adamw'"),
        ("model.norm=batch", "config.model.norm is 'batch'; choose one of 'layer_norm'"),
        ("train.accumulate=3", "train.batch_size 8 does not divide into train.accumulate 3"),
        ("data.length=600", "data.length 600 exceeds the model's 512 positions"),
        ("data.task=prott5", "does not read the data task 'prott5'; choose data.task = 'tokens'"),
        ("objective.name=denoising", "is not trained by objective 'denoising'; choose 'masked'"),
        ("objective.rat=0.3", "config.objective.rat does not exist; did you mean objective.rate?"),
        ("init_from=nowhere", "nowhere is not a folder on this machine: name a run's folder"),
        ("init_from=3", "config.init_from is 3; it must be of type str or None"),
        ("init_what=all", "config.init_what is 'all'; choose one of 'params', 'state'"),
        ("init_from.model=x", "--config.init_from.model: overrides are --config.SECTION.FIELD"),
        ("model.dtype=float64", "config.model.dtype is 'float64'; choose one of 'float32', 'bfl"),
        ("train.steps={[]:1}", "config.train.steps is '{[]:1}'; it must be of type int"),
        ("objective.name=[]", "config.objective.name is []; it must be of type str"),
        ("mesh.data={{}}", "config.mesh.data is '{{}}'; it must be of type int"),
        ("train.steps=" + "-" * 9000 + "1", "train.steps has 9,013 characters; at most 4,096"),
        ("train.steps=" + "-" * 4000 + "1", "-... is nested too deeply"),
        ("train.steps=0x" + "f" * 4000, "is a very large int; it must be finite and below 2^63"),
        ("model.d_model=999999999999", "d_model"),
        ("train.seed=9223372036854775808", "it must be finite and below 2^63"),
        ("schedule.learning_rate=1e309", "is inf; it must be finite and below 2^63"),
        ("init_from=" + "a" * 5000, "init_from has 5,010 characters; at most 4,096 are read"),
        ("data.fasta=a\0b", "config.data.fasta is 'a\\x00b'; leave out its control characters"),
        (
            "train.profile_steps=(1, 'a')",
            "config.train.profile_steps[1] is 'a'; it must be",
        ),
        (
            "objective.name=span",
            "unknown objective 'span'; there are causal, denoising, ",
        ),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ProtlmError) as caught:
        load_config(TINY, [override], architecture_of=read_architecture)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["bert", "t5"])
def test_a_config_survives_its_file(variant: str) -> None:
    config = load_config(f"configs/tiny.py:{variant}", ["train.steps=3"])
    assert RunConfig.from_dict(config.to_dict()) == config
    assert load_config("configs/tiny.py", []) == load_config(TINY, [])


def test_the_file_is_found_from_any_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(TINY, []).model.family == "bert"
    with pytest.raises(ProtlmError, match="config file configs/none.py does not exist"):
        load_config("configs/none.py:bert", [])


def test_a_variant_that_does_not_exist_is_named_beside_those_that_do() -> None:
    with pytest.raises(ProtlmError) as caught:
        load_config("configs/tiny.py:brt", [])
    assert "--config configs/tiny.py:brt: " in str(caught.value)
    assert "has the variants bert, " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("x = 1", "", "defines no get_config"),
        ("def get_config(): return {}", "", "must return an ml_collections.ConfigDict"),
        ("def get_config(variant): return {}", "", "missing 1 required positional argument"),
        ("def get_config(): return {}", ":big", "takes 0 positional arguments"),
        ("{head}return ConfigDict()", "", "config.model is missing"),
        ("{head}c = tiny(); c.extra = ConfigDict(); return c", "", "config.extra does not exist"),
        ("{head}c = tiny(); del c.train; return c", "", "config.train is missing"),
        ("{head}c = tiny(); del c.train.steps; return c", "", "argument: 'steps'"),
        ("{head}c = tiny(); c.mesh = 8; return c", "", "config.mesh is 8; it must be a section"),
        (
            "{head}c = tiny(); c.init_what = eval('[' * 90 + ']' * 90); return c",
            "",
            "nested more than 20 levels deep",
        ),
        ("def get_config(:", "", "SyntaxError: invalid syntax (FILE, line 1)"),
        (
            "x = 1\ny = x.z\n",
            "",
            "AttributeError: 'int' object has no attribute 'z' (FILE, line 2)",
        ),
        ("import nothing", "", "ModuleNotFoundError: No module named 'nothing' (FILE, line 1)"),
        ("\ndef get_config():\n  return {}['a']", "", "KeyError: 'a' (FILE, line 3)"),
        ("raise SystemExit(0)", "", "SystemExit: 0 (FILE, line 1)"),
        ("a\0b", "", "SyntaxError: source code string cannot contain null bytes (FILE)"),
    ],
)
def test_a_config_file_that_defines_nothing_useful(
    tmp_path: Path, text: str, variant: str, message: str
) -> None:
    head = (
        "import runpy\nfrom ml_collections import ConfigDict\n"
        f"tiny = runpy.run_path({str(Path(__file__).parents[2] / 'configs/tiny.py')!r})"
        "['get_config']\ndef get_config(): "
    )
    file = tmp_path / "mine.py"
    file.write_text(text.replace("{head}", head))
    with pytest.raises(ProtlmError) as caught:
        load_config(f"{file}{variant}", [])
    assert message.replace("FILE", str(file)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["configs", "/dev/null", "", "a" * 5000, "a\0b"])
def test_a_config_path_that_is_no_file(spec: str) -> None:
    with pytest.raises(ProtlmError, match=r"is not an ordinary file|^config file .* not exist"):
        load_config(spec, [])


def test_a_discriminator_is_not_trained_alone() -> None:
    overrides = ["model.family=electra_discriminator", "model.generator_shrink=0"]
    with pytest.raises(ProtlmError, match="'electra_discriminator' is not trained alone: start"):
        load_config("configs/tiny.py:electra", overrides)
