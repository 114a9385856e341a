"""Models that undo noise: their score at each level of noise, and proteins that they generate.

Both hide residues behind <mask>, any share of them, for every masked model. A model that was
trained on 15 % only is then asked for what it never saw, which is the comparison that a diffusion
model (DPLM) is made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.engine import Engine, features, max_residues, normalised
from protlm_jax.evaluation.finite import not_finite
from protlm_jax.evaluation.heldout import hide_all, model_scores
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.readouts import Hides
from protlm_jax.objectives.diffusion import denoise
from protlm_jax.vocabularies import normalise
from protlm_jax.vocabularies.structure import is_structured

OPEN = "_"  # in a template, a residue to generate
STEPS = 500


def by_noise_level(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    seed: int,
    *,
    levels: int = 10,
    length: int | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Scores a masked model at residues hidden at levels of noise k / levels for k = 1 to levels.

    A level hides that share of each protein's standard residues but the first, chosen by sequence
    and seed, and predicts each of them among the 20 amino acids. Other arguments as of
    `heldout.evaluate`.

    Returns:
        "levels": for each "noise" (the share hidden), "residues", and estimates of "nll" (nats per
        hidden residue) and "accuracy"; and "bound", the mean of "nll" over levels: an estimate,
        better with more levels, of an upper bound on the nats per residue, in the mean over orders
        in which residues are uncovered (Hoogeboom et al. 2022, arXiv:2110.02037).

    Raises:
        ProtlmError: the model is not a masked one, or no protein has a residue to hide.
    """
    _require_masked(loaded)
    plain = normalised(sequences.items(), loaded.policy)
    rows, means = [], []
    for level in range(1, levels + 1):
        hidden = hide_all(plain, seed, level / levels)
        nll, hits = model_scores(loaded, hidden, length, tokens_per_batch, progress)
        residues = np.array([len(h.targets) for h in hidden])
        means.append([loss.mean() for loss in nll])
        total, correct = ([x.sum() for x in each] for each in (nll, hits))
        rows.append(
            {
                "noise": level / levels,
                "residues": int(residues.sum()),
                "nll": statistics.ratio(total, residues, seed=seed).to_dict(),
                "accuracy": statistics.ratio(correct, residues, seed=seed).to_dict(),
            }
        )
    # At the last level `residues` counts all of them.
    bound = statistics.ratio(np.mean(means, axis=0) * residues, residues, seed=seed)
    return {"levels": rows, "bound": bound.to_dict(), "proteins": len(sequences), "seed": seed}


def generate(
    loaded: LoadedModel,
    templates: Sequence[str],
    *,
    steps: int = STEPS,
    temperature: float = 1.0,
    seed: int = 0,
    tokens_per_batch: int | None = None,
) -> list[str]:
    """Fills the open places of templates with residues, from all masks to none.

    Args:
        loaded: a masked model.
        templates: residues, and `_` at each place to fill: "_" * 100 for a new protein.
        steps: forward passes of each batch; more than the longest template has open places have
            no effect.
        temperature: of the draws; 0 takes the most likely residue.
        seed: of the draws, which also depend on the templates that share a batch.

    Raises:
        ProtlmError: the model is not a masked one, a template is longer than a row, a number is out
            of range, or the model gives NaN or infinity.
    """
    _require_masked(loaded)
    if steps < 1 or not 0 <= temperature < float("inf"):
        raise ProtlmError(
            f"steps {steps} must be at least 1, temperature {temperature} a number, at least 0"
        )
    vocabulary, before = loaded.vocabulary, len(loaded.vocabulary.prefix_ids)
    rows, places = _read_templates(loaded, templates)
    made = [""] * len(rows)
    engine, static = Engine(loaded), (vocabulary.hides, steps)
    for number, batch in enumerate(engine.one_a_row([len(row) for row in rows], tokens_per_batch)):
        inputs = {
            "batch": features(loaded, batch, [rows[i] for i in batch.members]),
            "open_places": batch.fill([places[i] for i in batch.members]) > 0,
            "rng": jax.random.fold_in(jax.random.key(seed), number),
            "temperature": np.float32(temperature),
            "columns": vocabulary.amino_acid_columns,
        }
        tokens, finite = jax.device_get(engine(_denoise, inputs, *static))
        for i, row, whole in zip(batch.members, tokens, finite, strict=False):
            if not whole:
                record = f"template {i + 1}"
                filled = normalise(templates[i].replace(OPEN, "X"), loaded.policy, record=record)
                raise not_finite(loaded, filled, record, "the answer")
            made[i] = vocabulary.decode(row[before : len(rows[i]) - len(vocabulary.suffix_ids)])
    return made


def _denoise(model: Any, params: Any, inputs: Any, hides: Hides, steps: int) -> Any:
    return denoise(model, params, **inputs, hides=hides, steps=steps)


def _read_templates(
    loaded: LoadedModel, templates: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens of each template, and 1 at open places; special tokens included."""
    vocabulary, limit = loaded.vocabulary, max_residues(loaded)
    around = len(vocabulary.prefix_ids), len(vocabulary.suffix_ids)
    rows, places = [], []
    for number, template in enumerate(templates, start=1):
        record = f"template {number}"
        filled = normalise(template.replace(OPEN, "X"), loaded.policy, record=record)
        step = 2 if is_structured(filled) else 1  # a template of pairs: `_d`
        if step * len(filled) != len(template):
            raise ProtlmError(f"{record} has spaces: write residues and {OPEN!r} alone")
        if limit is not None and len(filled) > limit:
            raise ProtlmError(
                f"{record} has {len(filled)} places; {loaded.name} reads {limit} at once"
            )
        rows.append(vocabulary.encode(filled))
        open_places = np.array([letter == OPEN for letter in template[::step]])
        places.append(np.pad(open_places, around).astype(np.int32))
    return rows, places


def _require_masked(loaded: LoadedModel) -> None:
    if (reason := loaded.model.readouts[0].why_no_noise) is not None:
        raise ProtlmError(
            f"noise that hides residues is defined for masked models and for DPLM, and not for "
            f"{loaded.name}: {reason}"
        )
