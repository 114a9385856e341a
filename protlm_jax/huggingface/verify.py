"""Compares an exported folder, loaded by transformers, with the model that was exported."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import structure

TOLERANCE = 1e-4  # of the largest logit


def verify(loaded: LoadedModel, folder: str | Path, sequences: Mapping[str, str]) -> dict[str, Any]:
    """Compares logits and token ids on a padded batch.

    Args:
        loaded: the model that was exported.
        folder: the export.
        sequences: id -> normalised sequence, of different lengths, each short enough for one row.

    Returns:
        "max_difference" of the logits relative to the largest one, over all tokens but padding;
        "tokenizer" (whether spaced and unspaced text gives our ids); and what was compared.

    Raises:
        ProtlmError: when torch or transformers is missing, or the two disagree.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ProtlmError(
            f"loading the export back needs torch and transformers ({error}): "
            f"install requirements/hf.txt, or pip install 'protlm-jax[hf]'"
        ) from error
    exchange = EXCHANGES[loaded.config.family]
    architecture = getattr(transformers, exchange.loads_as)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **exchange.trust)
    theirs = architecture.from_pretrained(str(folder), **exchange.trust).eval()
    ours_ids = [list(loaded.vocabulary.encode(text)) for text in sequences.values()]
    texts = list(map(structure.written, sequences.values()))
    written = texts, [" ".join(text) for text in texts]
    same_ids = all(tokenizer(given)["input_ids"] == ours_ids for given in written)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids, seen = batch["input_ids"], batch["attention_mask"]
    inputs = {name: batch[name] for name in tokenizer.model_input_names if name in batch}
    if loaded.config.num_decoder_layers:
        inputs["labels"] = ids
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    features = features_of(loaded, ids.numpy(), seen.numpy())
    with jax.default_matmul_precision("float32"):  # a GPU's default is further off than TOLERANCE
        ours = np.asarray(loaded.model.apply({"params": loaded.params}, features))
    ours = ours.reshape(expected.shape)  # without the last axis where a token has one answer
    real = seen.numpy().astype(bool)
    difference = np.abs(ours - expected)[real].max() / np.abs(expected)[real].max()
    if not same_ids or not difference <= TOLERANCE:
        raise ProtlmError(
            f"{folder}: transformers disagrees with the exported model (logits differ by "
            f"{difference:.2e} of the largest, tokenizer {'agrees' if same_ids else 'differs'}): "
            f"please report this, with the folder's config.json"
        )
    return {
        "max_difference": float(difference),
        "tokenizer": same_ids,
        "proteins": len(texts),
        "tokens": int(real.sum()),
        "transformers": transformers.__version__,
        "architecture": architecture.__name__,
    }


def short_proteins(sequences: Mapping[str, str], longest: int, how_many: int = 8) -> dict[str, str]:
    """The first few that fit one row."""
    fitting = ((name, s) for name, s in sequences.items() if len(s) <= longest)
    return dict(itertools.islice(fitting, how_many))


def features_of(loaded: LoadedModel, ids: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    if not loaded.config.num_decoder_layers:
        return {"input_tokens": ids, "segment_ids": seen, "positions": positions}
    shifted = np.concatenate([np.full((len(ids), 1), loaded.vocabulary.pad_id), ids[:, :-1]], 1)
    # Their decoder sees padding to its right as ordinary tokens; being causal it does not matter.
    return {
        "encoder_input_tokens": ids,
        "encoder_segment_ids": seen,
        "encoder_positions": positions,
        "decoder_input_tokens": shifted,
        "decoder_segment_ids": seen,
        "decoder_positions": positions,
    }
