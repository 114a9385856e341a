"""How well a model predicts residues of unseen proteins that it cannot see.

Every target is shown as the mask token: with BERT's 80/10/10 a tenth of the targets is visible, and
a model that merely copies looks 0.2 nats better than it is. The first residue of a protein is never
a target (96 % are M). Two baselines answer on the same positions: the frequencies of the training
data, and the protein's own composition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data import splits
from protlm_jax.data.rows import Batch, even_pieces
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.engine import Engine, features, normalised, residues_in_row
from protlm_jax.evaluation.finite import require_finite
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

RATE = 0.15
# Residues' worth of training frequencies mixed into a protein's own composition: the usual few, and
# the count that is best on the bundled proteins, leave-one-out (2.844 nats; 10 give 2.858, 300 give
# 2.847).
PSEUDO_COUNTS = {"own_composition": 10.0, "own_composition_best_smoothing": 130.0}
_COLUMN = np.full(256, -1, np.int8)
_COLUMN[np.frombuffer(AMINO_ACIDS.encode("ascii"), np.uint8)] = np.arange(20)


@dataclass(frozen=True)
class HiddenProtein:
    """A protein and which of its residues are asked.

    Attributes:
        sequence: normalised residues.
        columns: [residues] int8, the residue's index in AMINO_ACIDS; -1 for the rare ones.
        targets: [targets] indices of the residues that are hidden, ascending; never 0.
        name: of the protein, for messages.
    """

    sequence: str
    columns: np.ndarray
    targets: np.ndarray
    name: str = ""


def residue_frequencies(sequences: Iterable[str]) -> np.ndarray:
    """Frequencies [20] of the standard residues, in the order of AMINO_ACIDS, first residues left
    out as they are in the evaluation.

    Raises:
        ProtlmError: when there is no standard residue to count.
    """
    return splits.residue_frequencies(sequence[1:] for sequence in sequences)


def hide(sequence: str, seed: int, rate: float = RATE, *, name: str = "") -> HiddenProtein:
    """Chooses the residues that are asked, by a generator made from the seed and the sequence.

    The choice depends on nothing else: not on the name, the order, or the model.
    """
    columns = _columns(sequence)
    eligible = np.flatnonzero(columns >= 0)
    eligible = eligible[eligible > 0]
    digest = hashlib.sha256(f"{seed}:{sequence}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    count = min(len(eligible), max(1, round(rate * len(eligible))))
    return HiddenProtein(
        sequence, columns, np.sort(generator.choice(eligible, count, replace=False)), name
    )


def hide_all(plain: Mapping[str, str], seed: int, rate: float = RATE) -> list[HiddenProtein]:
    """`hide` of each normalised protein that has a residue to hide.

    Raises:
        ProtlmError: none has one.
    """
    every = [hide(s, seed, rate, name=name) for name, s in plain.items()]
    if not (hidden := [h for h in every if len(h.targets)]):
        raise ProtlmError("no protein has a standard residue after its first one")
    return hidden


def evaluate(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    train_frequencies: np.ndarray,
    seed: int,
    *,
    length: int | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Scores a model at hidden residues of held-out proteins, against two baselines.

    Args:
        loaded: the model.
        sequences: id -> sequence of proteins that were not trained on.
        train_frequencies: [20] in the order of AMINO_ACIDS; see `residue_frequencies`.
        seed: of the choice of residues and of the bootstrap.
        length: tokens in a row, special tokens included; None takes the position table's size, or
            whole proteins where positions have no limit. Longer proteins are cut into even pieces.
        tokens_per_batch: budget of one batch; None suits the device.
        progress: draw a progress bar on a terminal.

    Returns:
        A plain dict: natural-log losses of "model" and of each baseline with standard errors and
        95 % intervals, the paired "model_minus" differences, accuracy, perplexity, and how it was
        done in "protocol".

    Raises:
        ProtlmError: when no protein has a residue to ask, an unknown residue turns up, the model
            gives no distribution over residues, or NaN or infinity.
    """
    if not loaded.model.readouts[0].predicts_residues:
        raise ProtlmError(f"{loaded.name} {loaded.model.readouts[0].silence}")
    frequencies = np.asarray(train_frequencies, np.float64)
    if frequencies.shape != (20,) or (frequencies <= 0).any():
        raise ProtlmError("train_frequencies must be 20 positive numbers, one an amino acid")
    frequencies = frequencies / frequencies.sum()
    hidden = hide_all(normalised(sequences.items(), loaded.policy), seed)
    losses, hits = model_scores(loaded, hidden, length, tokens_per_batch, progress)
    unigram = [-np.log(frequencies[h.columns[h.targets]]) for h in hidden]
    baselines = {"training_frequencies": unigram}
    for name, count in PSEUDO_COUNTS.items():
        baselines[name] = [composition_loss(h, frequencies, count) for h in hidden]
    asked = np.array([len(h.targets) for h in hidden])
    totals = {name: np.array([x.sum() for x in each]) for name, each in baselines.items()}
    model, correct = (np.array([x.sum() for x in each]) for each in (losses, hits))
    nll = statistics.ratio(model, asked, seed=seed)
    return {
        "proteins": len(hidden),
        "skipped_proteins": len(sequences) - len(hidden),
        "targets": int(asked.sum()),
        "entropy_of_training_frequencies": float(-(frequencies * np.log(frequencies)).sum()),
        "model": {
            "nll": nll.to_dict(),
            "perplexity": float(np.exp(nll.value)),
            "accuracy": statistics.ratio(correct, asked, seed=seed).to_dict(),
        },
        **against_baselines(model, totals, asked, seed),
        "protocol": protocol(loaded),
    }


def composition_loss(
    protein: HiddenProtein, frequencies: np.ndarray, pseudo_count: float
) -> np.ndarray:
    """Loss [targets] in nats of the protein's own composition, leave-one-out.

    The probability of a residue is its count among all other residues of the protein, hidden ones
    too, smoothed by `pseudo_count` residues of the training frequencies. It sees more than the
    model.
    """
    counts = np.bincount(protein.columns[protein.columns >= 0], minlength=20)
    asked = protein.columns[protein.targets]
    smooth = pseudo_count * frequencies[asked]
    return -np.log((counts[asked] - 1 + smooth) / (counts.sum() - 1 + pseudo_count))


def protocol(loaded: LoadedModel) -> str:
    """What was asked of the model, in words."""
    kind = loaded.model.readouts[0].kind
    shown = ""
    if kind in ("masked", "denoising"):
        shown = f"all shown as {loaded.vocabulary.tokens[loaded.vocabulary.hiding_id]} "
    where = {
        "masked": "in its input",
        "denoising": "in the encoder's input, the decoder being given the true residues before "
        "each one",
        "query": "each asked by its position alone, and kept from all other positions too",
        "causal": "each predicted from the residues before it",
    }[kind]
    return (
        f"{RATE:.0%} of each protein's residues, chosen from its sequence and the seed, {shown}"
        f"{where}; never the first residue; softmax over the 20 standard amino acids; "
        f"own composition: leave-one-out over the whole protein, hidden residues included, with "
        f"{' or '.join(f'{count:g}' for count in PSEUDO_COUNTS.values())} (best) pseudo-counts"
    )


def against_baselines(
    model: np.ndarray, baselines: Mapping[str, np.ndarray], asked: np.ndarray, seed: int
) -> dict[str, Any]:
    """The "baselines" and "model_minus" of a result, from sums of losses [proteins]."""
    return {
        "baselines": {
            name: {"nll": statistics.ratio(total, asked, seed=seed).to_dict()}
            for name, total in baselines.items()
        },
        "model_minus": {
            name: statistics.paired_difference(model, total, asked, seed=seed).to_dict()
            for name, total in baselines.items()
        },
    }


def model_scores(
    loaded: LoadedModel,
    hidden: list[HiddenProtein],
    length: int | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """How well a model predicts the residues that are hidden from it.

    Args:
        loaded: a model that predicts residues.
        hidden: proteins, and which residues are asked.
        length, tokens_per_batch, progress: as of `evaluate`.

    Returns:
        Of each protein its losses [targets] float64, in nats among the 20 amino acids, and hits
        [targets] bool.

    Raises:
        NotFinite: a loss is not finite.
    """
    pieces, batches, engine = in_rows(loaded, hidden, length, tokens_per_batch)
    before = len(loaded.vocabulary.prefix_ids)
    losses = [np.empty(len(h.targets)) for h in hidden]
    hits = [np.empty(len(h.targets), bool) for h in hidden]

    def inputs(batch: Batch) -> tuple[Any, np.ndarray]:
        asked = hidden_batch(loaded, hidden, [pieces[m] for m in batch.members], batch)
        return asked.features, asked.columns

    for batch, (nll, hit) in engine.run(
        _score, batches, inputs, engine.amino_acids, title="held-out", progress=progress
    ):
        for row, member in enumerate(batch.members):
            i, start, stop = pieces[member]
            here = (hidden[i].targets >= start) & (hidden[i].targets < stop)
            at = hidden[i].targets[here] - start + before
            losses[i][here], hits[i][here] = nll[row, at], hit[row, at]
            require_finite(loaded, losses[i][here], hidden[i].sequence, hidden[i].name, "the loss")
    return losses, hits


Pieces = list[tuple[int, int, int]]
"""Protein, first residue, and the residue after the last."""


def in_rows(
    loaded: LoadedModel,
    hidden: list[HiddenProtein],
    length: int | None,
    tokens_per_batch: int | None,
) -> tuple[Pieces, list[Batch], Engine]:
    """Proteins cut to what a row of `length` tokens holds, their batches, and what runs these."""
    limit, engine = residues_in_row(loaded, length), Engine(loaded)
    pieces = [(i, *p) for i, h in enumerate(hidden) for p in even_pieces(len(h.sequence), limit)]
    tokens = [stop - start + loaded.vocabulary.num_specials for _, start, stop in pieces]
    return pieces, engine.one_a_row(tokens, tokens_per_batch), engine


class HiddenBatch(NamedTuple):
    """Proteins with residues kept from the model.

    Attributes:
        features: what the model is given.
        true: [rows, length] int32, the tokens as they are.
        hidden: [rows, length] bool, whose residue is asked and not shown.
        columns: [rows, length] int32, the residue's index in AMINO_ACIDS where it is asked.
    """

    features: dict[str, Any]
    true: np.ndarray
    hidden: np.ndarray
    columns: np.ndarray


def hidden_batch(
    loaded: LoadedModel, hidden: list[HiddenProtein], members: Pieces, batch: Batch
) -> HiddenBatch:
    """The pieces that are members of a batch, with their targets hidden."""
    vocabulary, readout = loaded.vocabulary, loaded.model.readouts[0]
    before = len(vocabulary.prefix_ids)
    true, columns = [], []
    for i, start, stop in members:
        protein = hidden[i]
        true.append(vocabulary.encode(protein.sequence[start:stop]))
        targets = protein.targets[(protein.targets >= start) & (protein.targets < stop)]
        columns.append(np.full(len(true[-1]), -1))
        columns[-1][targets - start + before] = protein.columns[targets]
    shown = features(loaded, batch, true)
    asked = batch.fill(columns, -1)
    if readout.predicts_residues:
        shown = readout.hide(shown, asked >= 0, vocabulary.mask_id)
    return HiddenBatch(shown, batch.fill(true, vocabulary.pad_id), asked >= 0, np.maximum(asked, 0))


def _score(
    model: Any, params: Any, inputs: Any, amino_acids: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Loss and top-1 hit [rows, length] of the true residue, among the 20 amino acids."""
    batch, columns = inputs
    logits = model.readouts[0].align(model.apply({"params": params}, batch))
    logits = logits[..., jnp.asarray(amino_acids)]
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    nll = -jnp.take_along_axis(log_probabilities, columns[..., None], axis=-1)[..., 0]
    return nll, jnp.argmax(logits, axis=-1) == columns


def _columns(sequence: str) -> np.ndarray:
    return _COLUMN[np.frombuffer(sequence.encode("ascii"), np.uint8)]
