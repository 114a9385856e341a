"""How well a discriminator finds the residues of unseen proteins that its generator replaced.

The generator is shown masks and its answers are drawn, as in training; the discriminator labels
every residue but the first. Most labels are "original", and some residue types are drawn more often
than they occur in proteins: the entropy of the labels given the residue type is the loss of a
detector that knows these frequencies, of the very residues that are scored, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import RowBatch
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import heldout, statistics
from protlm_jax.evaluation.engine import Engine, features, normalised
from protlm_jax.evaluation.finite import require_finite
from protlm_jax.evaluation.heldout import HiddenProtein
from protlm_jax.evaluation.tables import Table
from protlm_jax.models.loaded import LoadedModel, parts_of


@dataclass(frozen=True)
class Detected:
    """The standard residues of one protein after the first.

    logits: [residues] float64 of "replaced"; replaced: [residues] bool; tokens: [residues] shown.
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
        sequences, length, tokens_per_batch: as of `heldout.evaluate`.
        seed: of the choice of residues, of the draws, and of the bootstrap.
        rate: fraction of residues that are masked for the generator, as in the training.

    Returns:
        A plain dict: "model" with the cross-entropy "nll" in nats per residue and "auroc", each
        with its bootstrap over proteins, and accuracy, precision and recall at probability 1/2;
        the label entropies under "baselines"; paired differences under "model_minus". What needs
        replaced, original or flagged residues is None where there are none.

    Raises:
        ProtlmError: the model has no generator, no protein has a residue to mask, or one of both
            gives NaN or infinity.
    """
    parts = parts_of(loaded)
    if "generator" not in parts:
        raise ProtlmError(
            f"{loaded.name} is a discriminator alone: what it detects is what its own generator "
            f"replaced, so give the run that trained both"
        )
    hidden = heldout.hide_all(normalised(sequences.items(), loaded.policy), seed, rate)
    found = _detect(loaded, parts["generator"], hidden, seed, length, tokens_per_batch, progress)
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


def summary(result: dict[str, Any]) -> str:
    """The result of `evaluate` as text."""

    def share(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.3f}"

    model = result["model"]
    rows = [("discriminator", statistics.written(model["nll"], 4)), *heldout.baseline_rows(result)]
    lines = [
        f"{result['residues']:,} residues of {result['proteins']:,} held-out proteins, "
        f"{100 * result['replaced']:.1f} % of them replaced",
        Table(("", "nats per residue"), rows).text(),
        *heldout.differences(result),
        f"AUROC {statistics.written(model['auroc'], 4)}; at probability 1/2 accuracy "
        f"{model['accuracy']:.3f}, precision {share(model['precision'])}, recall "
        f"{share(model['recall'])}",
    ]
    return "\n".join([*lines, result["protocol"]])


def _detect(
    loaded: LoadedModel,
    generator: LoadedModel,
    hidden: list[HiddenProtein],
    seed: int,
    length: int | None,
    tokens_per_batch: int | None,
    progress: bool,
) -> list[Detected]:
    vocabulary = loaded.vocabulary
    before, after = np.array(vocabulary.prefix_ids), np.array(vocabulary.suffix_ids)
    pieces, batches, engine = heldout.in_rows(loaded, hidden, length, tokens_per_batch)
    true = [vocabulary.encode(h.sequence, specials=False) for h in hidden]
    shown = [tokens.copy() for tokens in true]
    logits = [np.empty(len(tokens)) for tokens in true]

    def masked(batch: RowBatch) -> Any:
        members = [pieces[m] for m in batch.members]
        return heldout.hidden_batch(generator, hidden, members, batch).features

    def replaced(batch: RowBatch) -> Any:
        members = (pieces[m] for m in batch.members)
        rows = [np.concatenate([before, shown[i][start:stop], after]) for i, start, stop in members]
        return features(loaded, batch, rows)

    def answers(engine: Engine, inputs: Callable[[RowBatch], Any], title: str) -> Iterator[Any]:
        """Protein, start, stop and the answers [residues, ...] of each piece."""
        found = engine.run(_answers, batches, inputs, title=title, progress=progress)
        for row, member, of_batch in ((r, m, x) for b, x in found for r, m in enumerate(b.members)):
            i, start, stop = pieces[member]
            yield i, start, stop, of_batch[row, len(before) :][: stop - start]

    for i, start, stop, found in answers(Engine(generator), masked, "generator"):
        protein = hidden[i]
        here = (protein.targets >= start) & (protein.targets < stop)
        targets = protein.targets[here]
        given = found[targets - start]
        require_finite(generator, given, protein.sequence, protein.name, "the answer")
        shown[i][targets] = draw(given, _uniform(protein, seed)[here])
    for i, start, stop, found in answers(engine, replaced, "detection"):
        logits[i][start:stop] = found[..., 0]
        require_finite(loaded, found[..., 0], hidden[i].sequence, hidden[i].name, "the answer")
    scored = [np.flatnonzero(h.columns[1:] >= 0) + 1 for h in hidden]
    return [
        Detected(logits[i][at], (shown[i] != true[i])[at], shown[i][at])
        for i, at in enumerate(scored)
    ]


def _compared(found: list[Detected], vocab_size: int, seed: int) -> dict[str, Any]:
    """Sums per protein, and their bootstrap."""
    logits, replaced, tokens = (
        np.concatenate([getattr(d, name) for d in found])
        for name in ("logits", "replaced", "tokens")
    )
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
        **heldout.against_baselines(model, baselines, residues, seed),
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
    """[targets] numbers in [0, 1) that depend on the seed and the sequence only."""
    digest = hashlib.sha256(f"{seed}:drawn:{protein.sequence}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little")).random(len(protein.targets))


def _answers(model: Any, params: Any, features: dict[str, jax.Array]) -> jax.Array:
    return model.apply({"params": params}, features).astype(jnp.float32)
