"""Transformer-XL's exports: a memory across calls, and transformers 4, whose own class reads them.

The class is gone from transformers 5, so that the second half needs another environment:

    PROTLM_TRANSFORMERS_4=/path/to/python   with transformers 4.57.6 and torch, or
    PROTLM_TRANSFORMERS_4=create            to make one in the cache folder (200 MB of packages)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

from protlm_jax.huggingface import export, load_model
from protlm_jax.models import LoadedModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PIECES = (7, 5, 1, 11)  # together more than the memory's 12 tokens
CACHE = Path(__file__).parents[2] / ".cache" / "transformers4"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return zoo.loaded("transformer_xl")


@pytest.fixture(scope="module")
def exported(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(loaded, tmp_path_factory.mktemp("export") / "hf")


@pytest.fixture(scope="module")
def ids(loaded: LoadedModel) -> np.ndarray:
    rng = np.random.default_rng(2)
    drawn = rng.choice(loaded.vocabulary.amino_acid_ids, (3, sum(PIECES)))
    drawn[:, 0] = loaded.vocabulary.prefix_ids[0]
    return drawn.astype(np.int32)


def in_pieces(loaded: LoadedModel, ids: np.ndarray) -> np.ndarray:
    """Our logits, each piece after the memory of the pieces before."""
    carry = loaded.model.initial_carry(len(ids))
    logits = []
    for piece in np.split(ids, np.cumsum(PIECES)[:-1], axis=1):
        batch = {"input_tokens": piece, "segment_ids": np.ones_like(piece)}
        out, carry = loaded.model.apply({"params": loaded.params}, batch, carry, method="recur")
        logits.append(out)
    return np.concatenate(logits, axis=1)


@pytest.mark.parametrize("same_length", [False, True])
def test_the_exported_code_remembers_as_we_do(
    loaded: LoadedModel, ids: np.ndarray, tmp_path: Path, same_length: bool
) -> None:
    config = loaded.config.replace(same_length=same_length, clamp_length=9)
    model = type(loaded.model)(config)
    ours = LoadedModel(model, loaded.params, loaded.vocabulary, "clamped")
    folder = export(ours, tmp_path / "hf")
    assert load_model(folder).config == config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    mems, found = None, []
    with torch.no_grad():
        for piece in np.split(ids, np.cumsum(PIECES)[:-1], axis=1):
            output = theirs.eval()(torch.tensor(piece), mems=mems)
            mems = output.mems
            found.append(output.logits.numpy())
    expected = in_pieces(ours, ids)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-5 * scale)
    # The memory is short, the distances clamped: forgetting either would be seen.
    whole = loaded.model.apply(
        {"params": loaded.params}, {"input_tokens": ids, "segment_ids": np.ones_like(ids)}
    )
    assert np.abs(whole - expected).max() > 1e-3 * scale


def test_the_exported_code_trains_and_refuses_padding_it_cannot_remember(
    exported: Path, ids: np.ndarray
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    tokens = torch.tensor(ids).long()
    labels = tokens.masked_fill(tokens == 2, -100)
    output = model.eval()(tokens, labels=labels, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert torch.isclose(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert len(output.hidden_states) == 3 and not output.mems[0].requires_grad
    mask = torch.ones_like(tokens)
    mask[0, -4:] = 0
    assert model(tokens, attention_mask=mask).mems is None
    with pytest.raises(ValueError, match="padding"):
        model(tokens, attention_mask=mask, mems=output.mems)


@pytest.fixture(scope="module")
def python_of_4() -> Path:
    """An interpreter with transformers 4.57."""
    wanted = os.environ.get("PROTLM_TRANSFORMERS_4")
    if not wanted:
        pytest.skip("PROTLM_TRANSFORMERS_4 names no environment with transformers 4.57")
    if wanted != "create":
        return Path(wanted)
    python = CACHE / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE], check=True)
        pinned = [f"torch=={torch.__version__.partition('+')[0]}", "transformers==4.57.6"]
        subprocess.run([python, "-m", "pip", "install", "-q", *pinned], check=True)
    return python


SCRIPT = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TransfoXLLMHeadModel

# Their class calls type_as(dtype=...), which no tensor understands: from 4.40 to its removal it
# could not run at all.
torch.Tensor.type_as = lambda self, other=None, dtype=None: self.to(dtype or other.dtype)

folder, saved, pieces = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ids = torch.tensor(np.load(saved)["ids"]).long()
model, report = TransfoXLLMHeadModel.from_pretrained(folder, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
ours = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
config = model.config
found = {}
with torch.no_grad():
    for name, theirs in {"class": model.eval(), "code": ours}.items():
        mems = [torch.zeros(0, len(ids), config.d_model)] * config.n_layer
        logits = []
        for piece in ids.split(pieces, dim=1):
            output = theirs(piece, mems=mems)
            mems = output.mems
            logits.append(output.logits.log_softmax(-1))
        found[name] = torch.cat(logits, dim=1).numpy()
tokenizer = AutoTokenizer.from_pretrained(folder)
found["tokens"] = np.array(tokenizer(["MKTX", "M K T X"])["input_ids"])
np.savez(saved, **found)
"""


def test_transformers_4_gives_the_same_log_probabilities(
    loaded: LoadedModel, exported: Path, ids: np.ndarray, python_of_4: Path, tmp_path: Path
) -> None:
    """Segments with a memory, through its own class and through the code in the folder."""
    saved = tmp_path / "ids.npz"
    np.savez(saved, ids=ids)
    command: list[Any] = [python_of_4, "-c", SCRIPT, exported, saved, json.dumps(PIECES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    logits = in_pieces(loaded, ids)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    with np.load(saved) as found:
        for name in ("class", "code"):
            np.testing.assert_allclose(
                found[name], expected, atol=1e-5 * np.abs(expected).max(), err_msg=name
            )
        assert found["tokens"].tolist() == [loaded.vocabulary.encode("MKTX").tolist()] * 2
