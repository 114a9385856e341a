"""What an export writes, what it refuses, and that it never leaves half a folder."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
import zoo

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, save
from protlm_jax.huggingface.convert import EXCHANGES, expected_shapes, their_shape
from protlm_jax.huggingface.folders import written_whole
from protlm_jax.huggingface.verify import verify
from protlm_jax.models import LoadedModel


def test_every_parameter_stands_in_the_table_once(loaded: LoadedModel) -> None:
    keys = EXCHANGES[loaded.config.family].keys
    abstract = models.abstract_params(loaded.model)
    assert len({key.ours for key in keys}) == len(keys)
    shapes = expected_shapes(EXCHANGES[loaded.config.family], abstract)
    numbers = sum(map(math.prod, shapes.values()))
    assert numbers == models.parameter_count(abstract)


@pytest.mark.parametrize(
    ("layout", "shape", "theirs"),
    [
        ("D H K -> (H K) D", (2, 3, 5), (15, 2)),
        ("H K D -> D (H K)", (2, 3, 5), (5, 6)),
        ("D F -> F D", (2, 3), (3, 2)),
        ("H K -> (H K)", (2, 3), (6,)),
        ("V -> V", (7,), (7,)),
    ],
)
def test_layout_rules(layout: str, shape: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    assert their_shape(shape, layout) == theirs


def test_model_card_says_what_was_given(loaded: LoadedModel, tmp_path: Path) -> None:
    text = "Trained on forty proteins."
    card = export(loaded, tmp_path / "m", training=text, metrics={"Q3": 0.71234}) / "README.md"
    assert text in card.read_text()
    assert "| Q3 | 0.7123 |" in card.read_text()
    assert f"{models.parameter_count(loaded.params):,} parameters" in card.read_text()


def test_the_code_on_the_card_runs(
    loaded: LoadedModel, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    code = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported.parent)
    names: dict[str, Any] = {}
    exec(code, names)
    width = loaded.config.d_model
    assert [tuple(h.shape) for h in names["residues"]] == [(10, width), (7, width)]


def test_tools_that_take_it_for_another_family_are_refused(
    loaded: LoadedModel, exported: Path
) -> None:
    """Some open every folder as a T5 encoder, or as an ESM-2, with new weights where it is none."""
    transformers = pytest.importorskip("transformers")
    kind = EXCHANGES[loaded.config.family].model_type
    for name, own in (("T5EncoderModel", "t5"), ("EsmModel", "esm")):
        tokenizer = (exported / "tokenizer_config.json").read_text()
        if kind == own or (own == "esm" and "EsmTokenizer" not in tokenizer):
            continue
        with pytest.raises(Exception, match="not.of.an?.(T5|ESM-2).model"):
            getattr(transformers, name).from_pretrained(exported)


def test_an_earlier_export_is_replaced_and_nothing_else_is(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    target = tmp_path / "hf"
    target.mkdir()
    export(loaded, target)
    (target / "stale.txt").write_text("of the first export")
    export(loaded, target)
    assert not (target / "stale.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("\\section{}")
    with pytest.raises(ProtlmError, match="thesis is not empty and was not made by protlm export"):
        export(loaded, precious)
    assert (precious / "chapter1.tex").exists()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ProtlmError, match="file is not empty"):
        export(loaded, file)


def test_a_full_disk_loses_nothing(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = export(loaded, tmp_path / "hf")
    before = (target / "model.safetensors").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    with pytest.raises(ProtlmError, match="cannot write .*/hf: No space left .*; free some space"):
        export(loaded, target)
    assert (target / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("name", ["norm", "use_bias"])
def test_what_they_cannot_express_is_refused(
    loaded: LoadedModel, tmp_path: Path, name: str
) -> None:
    config = loaded.config
    other = {
        "norm": "rms_norm" if config.norm == "layer_norm" else "layer_norm",
        "use_bias": not config.use_bias,
    }
    changed = dataclasses.replace(loaded, model=models.build(config.replace(**{name: other[name]})))
    with pytest.raises(ProtlmError, match=rf"has no way to say model\.{name}"):
        export(changed, tmp_path / "hf")
    assert not any(tmp_path.iterdir())


def test_published_configs_are_the_presets() -> None:
    """config.json of Rostlab/prot_bert_bfd and of Rostlab/prot_t5_xl_uniref50."""
    bert = {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "max_position_embeddings": 40000,
        "num_attention_heads": 16,
        "num_hidden_layers": 30,
        "type_vocab_size": 2,
        "vocab_size": 30,
    }
    assert EXCHANGES["bert"].from_config(bert) == models.preset("prot_bert")
    t5 = {
        "d_ff": 16384,
        "d_kv": 128,
        "d_model": 1024,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "num_heads": 32,
        "num_layers": 24,
        "relative_attention_num_buckets": 32,
        "vocab_size": 128,
    }
    assert EXCHANGES["t5"].from_config(t5) == models.preset("prot_t5_xl")


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    """Also what older versions called by the process, and an export half replaced is put back."""
    model, target = zoo.loaded("bert"), tmp_path / "hf"
    before = (export(model, target) / "config.json").read_bytes()
    for left in (".hf.partial", ".hf.partial-4711", ".hf.replaced-4711"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").touch()
    (tmp_path / ".hf.partially").mkdir()  # somebody else's
    target.rename(tmp_path / ".hf.replaced")
    shutil.rmtree(tmp_path / ".hf.replaced-4711")
    with pytest.raises(ProtlmError, match="as it was"), written_whole(target, replace=True):
        raise ProtlmError("as it was")
    assert (target / "config.json").read_bytes() == before
    (tmp_path / ".hf.replaced").mkdir()
    export(model, target)
    assert {p.name for p in tmp_path.iterdir()} == {"hf", ".hf.partially"}


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "hf"
    for replace in (False, True):
        with (
            pytest.raises(ProtlmError, match="is not what it was when writing began"),
            written_whole(target, replace=replace),
        ):
            target.mkdir()
            (target / "thesis.tex").touch()
        assert [p.name for p in tmp_path.iterdir()] == ["hf"]
        assert [p.name for p in target.iterdir()] == ["thesis.tex"]
        shutil.rmtree(target)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").touch()
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProtlmError, match="is not an empty folder"), written_whole(target):
        pass
    with written_whole(target, replace=True) as folder:
        (folder / "new").touch()
    assert not target.is_symlink() and [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["thesis.tex"]


def test_an_export_is_as_private_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        folder = export(zoo.loaded("bert"), tmp_path / "hf")
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_transformers_is_compared_with_products_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's default, TensorFloat32, differs by more than the tolerance."""
    model = zoo.loaded("bert")
    folder = export(model, tmp_path / "hf")
    asked: list[Any] = []
    apply = type(model.model).apply

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(jax.config.jax_default_matmul_precision)
        return apply(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "apply", noting)
    found = verify(model, folder, {"p": "MKTAYIAKQR"})
    assert found["max_difference"] < 1e-5 and asked == ["float32"]
