"""Layers are numbered as transformers numbers its hidden states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from zoo import loaded

from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.huggingface import export

PROTEIN = "MKTAYIAKQRGLVW"


@pytest.mark.parametrize("family", ["bert", "esm2", "t5", "xlnet"])
def test_hidden_states_of_transformers(
    family: str, tmp_path: Path, assert_close: Callable[..., None]
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = loaded(family)
    folder = export(model, tmp_path / "hf")
    kind = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
    peer = kind.from_pretrained(folder).eval()
    ids = torch.from_numpy(model.vocabulary.encode(PROTEIN)[None].astype(np.int64))
    more = {}
    if family == "xlnet":  # the closing <cls> has a token type of its own
        more["token_type_ids"] = torch.tensor([[0] * (ids.shape[1] - 1) + [2]])
    with torch.inference_mode():
        states = peer(input_ids=ids, output_hidden_states=True, **more).hidden_states
    before = len(model.vocabulary.prefix_ids)
    kept = slice(before, before + len(PROTEIN))
    ((_, found),) = embed_sequences(model, {"p": PROTEIN}, layers="all", devices=1)
    assert len(found) == len(states) == model.config.num_layers + 1
    for layer, state in enumerate(states):
        assert_close(found[layer], state[0, kept].numpy(), 1e-4, f"layer {layer}")
