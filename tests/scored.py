"""What tests of scores share: small files, one variant, and a model's logits for one protein."""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from zoo import loaded

from protlm_jax.evaluation.scoring.mutations import Variant, mutate, parse_mutations
from protlm_jax.evaluation.scoring.score import effects
from protlm_jax.models import LoadedModel

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQ"
GFP_LIKE = "MSKGEELFTGVVPILVELDGDVNGHKFSVSGEGEGDATYGKLTLKFICTTGKLPVPWPTL"


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def variant(text: str, wildtype: str = WILDTYPE) -> Variant:
    return mutate(parse_mutations(text), wildtype)


def effect(text: str, wildtype: str = WILDTYPE, family: str = "bert") -> float:
    return float(effects(loaded(family), [variant(text, wildtype)])[0])


@functools.partial(jax.jit, static_argnums=0)
def forward(model: Any, params: Any, batch: dict[str, Any]) -> jax.Array:
    return model.apply({"params": params}, batch)


def bare_logits(
    model: LoadedModel, sequence: str, hidden: Sequence[int] = (), *, backwards: bool = False
) -> np.ndarray:
    """Logits [residues, vocabulary] that predict the residues of one protein without padding.

    Written out for each kind of model; NaN where no token stands before a causal model's residue.
    Backwards, the first row is of the last residue.
    """
    vocabulary, kind = model.vocabulary, model.model.readouts[0].kind
    before = len(vocabulary.prefix_ids)
    true = vocabulary.encode(sequence)[None]
    if backwards:  # <EOS> of RITA stays behind, the termini of ProGen2 turn
        after = true.shape[1] - (vocabulary.name == "rita")
        true = np.concatenate([true[:, :after][:, ::-1], true[:, after:]], axis=1)
    at = np.asarray(hidden, int) + before
    shown = true.copy()
    if kind in ("masked", "denoising"):
        hides = vocabulary.hides
        shown[0, at] = np.asarray(hides)[true[0, at]] if vocabulary.structured else hides
    sides: dict[str, Any] = {
        "segment_ids": np.ones_like(true),
        "positions": np.arange(true.shape[1], dtype=np.int32)[None],
    }
    batch = {"input_tokens": shown, **sides}
    if kind == "denoising":
        batch = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in sides.items()}
        batch["encoder_input_tokens"] = shown
        batch["decoder_input_tokens"] = np.roll(true, 1, axis=1)
        batch["decoder_input_tokens"][0, 0] = vocabulary.pad_id
    if kind == "query":
        batch["hidden"] = np.isin(np.arange(true.shape[1]), at)[None]
    logits = np.asarray(forward(model.model, model.params, batch), np.float64)[0]
    first = before - (kind == "causal")
    nothing = np.full((max(0, -first), logits.shape[1]), np.nan)
    return np.concatenate([nothing, logits[max(0, first) :]])[: len(sequence)]
