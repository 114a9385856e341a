"""How well a discriminator finds the residues of unseen proteins that its generator replaced.

The generator is shown masks and its answers are drawn, as in training; the discriminator is asked
about every residue but the first. Its labels are mostly "original", and some residue types are
drawn more often than they stand in proteins: the entropy of the labels given the residue type is
what a detector pays that knows these frequencies, of the very residues that are scored, and
nothing of the protein around them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import heldout, statistics
from protlm_jax.evaluation.batching import (
    default_tokens_per_batch,
    grouped,
    max_residues,
    normalised,
    padded,
)
from protlm_jax.evaluation.finite import not_finite
from protlm_jax.evaluation.heldout import HiddenProtein
from protlm_jax.models.loaded import LoadedModel, parts_of


@dataclass(frozen=True)
class Detected:
    """The scored residues of one protein.

    Attributes:
        logits: [residues] float64 of "replaced".
        replaced: [residues] bool.
        tokens: [residues] int, the id that was shown.
    """

    logits: np.ndarray
    replaced: np.ndarray
    tokens: np.ndarray


def evaluate(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    seed: int,
    *,
    rate: float = heldout.RATE,
    length: int | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Scores a discriminator on held-out proteins in which its generator replaced residues.

    Args:
        loaded: a joint model, whose `parts_of` are "generator" and "discriminator".
        sequences: id -> sequence of proteins that were not trained on.
        seed: of the choice of residues, of what is drawn for them, and of the bootstrap.
        rate: fraction of residues that the generator is asked: that of the training, which is
            where the discriminator's sense of how many are replaced comes from.
        length, tokens_per_batch, progress: see `heldout.evaluate`.

    Returns:
        A plain dict: "model" with the cross-entropy "nll" in nats per residue and "auroc", each
        with its bootstrap over proteins, and accuracy, precision and recall at probability 1/2;
        the label entropies under "baselines"; paired differences under "model_minus". What needs
        replaced residues, original ones or flagged ones is None where there are none.

    Raises:
        ProtlmError: the model has no generator, no protein has a residue to ask, or one of both
            gives NaN or infinity.
    """
    parts = parts_of(loaded)
    if "generator" not in parts:
        raise ProtlmError(
            f"{loaded.name} is a discriminator alone: what it detects is what its own generator "
            f"replaced, so give the run that trained both"
        )
    plain = normalised(sequences.items(), loaded.policy)
    asked = (heldout.hide(s, seed, rate, name=name) for name, s in plain.items())
    hidden = [h for h in asked if len(h.targets)]
    if not hidden:
        raise ProtlmError("no held-out protein has a standard residue after its first one")
    budget = tokens_per_batch or default_tokens_per_batch()
    found = _detect(loaded, parts["generator"], hidden, seed, length, budget, progress)
    return {
        "proteins": len(found),
        "residues": sum(len(d.logits) for d in found),
        "replaced": float(np.mean(np.concatenate([d.replaced for d in found]))),
        **_compared(found, loaded.config.vocab_size, seed),
        "protocol": (
            f"{rate:.0%} of each protein's residues masked for the generator, its answers drawn "
            f"from its softmax; all residues but the first are asked about; a draw of the true "
            f"residue counts as original; AUROC: ties count half"
        ),
    }


def _detect(
    loaded: LoadedModel,
    generator: LoadedModel,
    hidden: list[HiddenProtein],
    seed: int,
    length: int | None,
    tokens_per_batch: int,
    progress: bool,
) -> list[Detected]:
    from tqdm import tqdm

    specials = loaded.vocabulary.num_specials
    limit = max_residues(loaded, None if length is None else length - specials)
    pieces = [
        (i, a, b)
        for i, h in enumerate(hidden)
        for a, b in heldout.even_pieces(len(h.sequence), limit)
    ]
    before = len(loaded.vocabulary.prefix_ids)
    true = [loaded.vocabulary.encode(h.sequence, specials=False) for h in hidden]
    shown = [tokens.copy() for tokens in true]
    logits = [np.empty(len(tokens)) for tokens in true]
    draws = [_uniform(h, seed) for h in hidden]
    with tqdm(total=len(pieces), desc="detection", disable=None if progress else True) as bar:
        tokens = [b - a + specials for _, a, b in pieces]
        for group in grouped(tokens, tokens_per_batch, loaded.config.max_positions or None):
            members = [pieces[m] for m in group.members]
            asked = heldout.hidden_batch(generator, hidden, members, group)
            answers = np.asarray(_answers(generator.model, generator.params, asked.features))
            for row, (i, a, b) in enumerate(members):
                here = (hidden[i].targets >= a) & (hidden[i].targets < b)
                targets = hidden[i].targets[here]
                given = answers[row, targets - a + before]
                if not np.isfinite(given).all():
                    raise not_finite(generator, hidden[i].sequence, hidden[i].name, "the answer")
                shown[i][targets] = draw(given, draws[i][here])
            rows = [
                np.concatenate(
                    [loaded.vocabulary.prefix_ids, shown[i][a:b], loaded.vocabulary.suffix_ids]
                )
                for i, a, b in members
            ]
            replaced = padded(rows, group, fill=loaded.vocabulary.pad_id)
            features = {**asked.features, "input_tokens": replaced}
            found = np.asarray(_answers(loaded.model, loaded.params, features))[..., 0]
            for row, (i, a, b) in enumerate(members):
                logits[i][a:b] = found[row, before : before + b - a]
                if not np.isfinite(logits[i][a:b]).all():
                    raise not_finite(loaded, hidden[i].sequence, hidden[i].name, "the answer")
            bar.update(len(members))
    return [
        Detected(logits[i][scored], (shown[i] != true[i])[scored], shown[i][scored])
        for i, scored in enumerate(map(_scored, hidden))
    ]


def _compared(found: list[Detected], vocab_size: int, seed: int) -> dict[str, Any]:
    """Sums per protein, and their bootstrap."""
    logits = np.concatenate([d.logits for d in found])
    replaced = np.concatenate([d.replaced for d in found])
    tokens = np.concatenate([d.tokens for d in found])
    owner = np.repeat(np.arange(len(found)), [len(d.logits) for d in found])

    def per_protein(loss: np.ndarray) -> np.ndarray:
        return np.bincount(owner, loss, minlength=len(found))

    residues = per_protein(np.ones(len(owner)))
    model = per_protein(np.logaddexp(0.0, np.where(replaced, -logits, logits)))
    baselines = {
        "label_entropy": per_protein(_surprise(np.zeros_like(tokens), replaced, 1)),
        "label_entropy_given_residue": per_protein(_surprise(tokens, replaced, vocab_size)),
    }
    flagged = logits >= 0
    area = statistics.auroc(logits, replaced, owner, seed=seed)
    return {
        "model": {
            "nll": statistics.ratio(model, residues, seed=seed).to_dict(),
            "auroc": None if area is None else area.to_dict(),
            "accuracy": float(np.mean(flagged == replaced)),
            "precision": float(np.mean(replaced[flagged])) if flagged.any() else None,
            "recall": float(np.mean(flagged[replaced])) if replaced.any() else None,
        },
        "baselines": {
            name: {"nll": statistics.ratio(loss, residues, seed=seed).to_dict()}
            for name, loss in baselines.items()
        },
        "model_minus": {
            name: statistics.paired_difference(model, loss, residues, seed=seed).to_dict()
            for name, loss in baselines.items()
        },
    }


def _surprise(tokens: np.ndarray, labels: np.ndarray, vocab_size: int) -> np.ndarray:
    """-log of each label's frequency among the labels of its token: [residues] nats."""
    counts = np.zeros((vocab_size, 2))
    np.add.at(counts, (tokens, labels.astype(int)), 1.0)
    return -np.log(counts[tokens, labels.astype(int)] / counts[tokens].sum(axis=1))


def draw(logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Tokens drawn from the softmax of logits [n, vocab] by numbers [n] in [0, 1): [n] ids."""
    wide = logits.astype(np.float64)
    weights = np.cumsum(np.exp(wide - wide.max(axis=-1, keepdims=True)), axis=-1)
    return np.sum(weights <= uniform[:, None] * weights[:, -1:], axis=-1)


def _uniform(protein: HiddenProtein, seed: int) -> np.ndarray:
    """[targets] numbers in [0, 1) that depend on the seed and the sequence alone."""
    digest = hashlib.sha256(f"{seed}:drawn:{protein.sequence}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little")).random(len(protein.targets))


def _scored(protein: HiddenProtein) -> np.ndarray:
    """Residues that may be asked: standard ones after the first."""
    return np.flatnonzero(protein.columns[1:] >= 0) + 1


@functools.partial(jax.jit, static_argnums=0)
def _answers(model: Any, params: Any, features: dict[str, jax.Array]) -> jax.Array:
    return model.apply({"params": params}, features).astype(jnp.float32)
