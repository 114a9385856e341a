"""How well a model predicts residues of unseen proteins that it cannot see.

Every target is shown as the mask token: with BERT's 80/10/10 a tenth of the targets is visible, and
a model that only copies looks 0.2 nats better than it is. The first residue of a protein is never a
target (96 % are M). The baselines answer at the same positions: the frequencies of the training
data, and the protein's own composition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import RowBatch, even_pieces
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.engine import AminoAcids, Engine, features, normalised, residues_in_row
from protlm_jax.evaluation.finite import require_finite
from protlm_jax.evaluation.tables import Table
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.readouts import residue_logits
from protlm_jax.vocabularies import AMINO_ACIDS
from protlm_jax.vocabularies.structure import without_structure

RATE = 0.15
# Residues' worth of training frequencies mixed into a protein's own composition: the usual few, and
# the count that is best on the bundled proteins, leave-one-out (2.844 nats; 10 give 2.858, 300 give
# 2.847).
PSEUDO_COUNTS = {"own_composition": 10.0, "own_composition_best_smoothing": 130.0}
_COLUMN = np.full(256, -1, np.int8)
_COLUMN[np.frombuffer(AMINO_ACIDS.encode("ascii"), np.uint8)] = np.arange(20)

Pieces = list[tuple[int, int, int]]
"""Protein, first residue, and the residue after the last."""


@dataclass(frozen=True)
class HiddenProtein:
    """A protein, and which of its residues the model predicts.

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


def hide(sequence: str, seed: int, rate: float = RATE, *, name: str = "") -> HiddenProtein:
    """Chooses targets among the standard residues; the choice depends on the residues, whether
    they have a structure or not, and the seed only."""
    residues = without_structure(sequence)
    columns = _COLUMN[np.frombuffer(residues.encode("ascii"), np.uint8)]
    eligible = np.flatnonzero(columns[1:] >= 0) + 1
    digest = hashlib.sha256(f"{seed}:{residues}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    count = min(len(eligible), max(1, round(rate * len(eligible))))
    targets = np.sort(generator.choice(eligible, count, replace=False))
    return HiddenProtein(sequence, columns, targets, name)


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
    """Scores a model at hidden residues of held-out proteins, against baselines.

    Args:
        loaded, sequences: the model; id -> sequence of proteins that were not trained on.
        train_frequencies: [20] in the order of AMINO_ACIDS, of `data.splits`.
        seed: of the choice of residues and of the bootstrap.
        length: tokens in a row, special ones included; None: the position table, or whole proteins
            where positions have no limit. Longer proteins are cut into even pieces.
        tokens_per_batch: budget of one batch; None suits the device.

    Returns:
        A plain dict: losses in nats of "model" and of "baselines" with standard errors and 95 %
        intervals, the paired differences "model_minus", accuracy, perplexity, and "protocol".

    Raises:
        ProtlmError: no protein has a residue to hide, an unknown residue, the model gives no
            distribution over residues, or NaN or infinity.
    """
    if not loaded.model.readouts[0].predicts_residues:
        raise ProtlmError(f"{loaded.name} {loaded.model.readouts[0].silence}")
    frequencies = np.asarray(train_frequencies, np.float64)
    if frequencies.shape != (20,) or (frequencies <= 0).any():
        raise ProtlmError("train_frequencies must be 20 positive numbers, one an amino acid")
    frequencies = frequencies / frequencies.sum()
    hidden = hide_all(normalised(sequences.items(), loaded.policy), seed)
    losses, hits = model_scores(loaded, hidden, length, tokens_per_batch, progress)
    model, correct = (np.array([x.sum() for x in each]) for each in (losses, hits))
    unigram = [-np.log(frequencies[h.columns[h.targets]]).sum() for h in hidden]
    baselines = {"training_frequencies": np.array(unigram)}
    for name, count in PSEUDO_COUNTS.items():
        own = [composition_loss(h, frequencies, count).sum() for h in hidden]
        baselines[name] = np.array(own)
    targets = np.array([len(h.targets) for h in hidden])
    nll = statistics.ratio(model, targets, seed=seed)
    return {
        "proteins": len(hidden),
        "skipped_proteins": len(sequences) - len(hidden),
        "targets": int(targets.sum()),
        "entropy_of_training_frequencies": float(-(frequencies * np.log(frequencies)).sum()),
        "model": {
            "nll": nll.to_dict(),
            "perplexity": float(np.exp(nll.value)),
            "accuracy": statistics.ratio(correct, targets, seed=seed).to_dict(),
        },
        **against_baselines(model, baselines, targets, seed),
        "protocol": protocol(loaded),
    }


def composition_loss(
    protein: HiddenProtein, frequencies: np.ndarray, pseudo_count: float
) -> np.ndarray:
    """Loss [targets] in nats of the protein's own composition, leave-one-out.

    The probability of a residue is its count among all other residues of the protein, hidden ones
    included, smoothed by `pseudo_count` residues of the training frequencies.
    """
    counts = np.bincount(protein.columns[protein.columns >= 0], minlength=20)
    targets = protein.columns[protein.targets]
    smooth = pseudo_count * frequencies[targets]
    return -np.log((counts[targets] - 1 + smooth) / (counts.sum() - 1 + pseudo_count))


def protocol(loaded: LoadedModel) -> str:
    """What the model predicts from what, in words."""
    kind = loaded.model.readouts[0].kind
    shown = ""
    if kind in ("masked", "denoising"):
        shown = f"all shown as {loaded.vocabulary.tokens[loaded.vocabulary.hiding_id]} "
        if loaded.vocabulary.structured:
            shown = "all shown as # with the letter of its structure, if it has one, "
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
    model: np.ndarray, baselines: Mapping[str, np.ndarray], residues: np.ndarray, seed: int
) -> dict[str, Any]:
    """The "baselines" and "model_minus" of a result, from sums of losses [proteins]."""
    of, minus = {}, {}
    for name, total in baselines.items():
        of[name] = {"nll": statistics.ratio(total, residues, seed=seed).to_dict()}
        difference = statistics.paired_difference(model, total, residues, seed=seed)
        minus[name] = difference.to_dict()
    return {"baselines": of, "model_minus": minus}


def summary(result: dict[str, Any]) -> str:
    """The result of `evaluate` as text."""
    model = result["model"]
    accuracy = f"{100 * model['accuracy']['value']:.1f} %"
    rows = [("model", statistics.written(model["nll"], 4), accuracy)]
    rows += [(name, loss, "") for name, loss in baseline_rows(result)]
    lines = [
        f"{result['targets']:,} hidden residues of {result['proteins']:,} held-out proteins",
        Table(("", "nats per residue", "accuracy"), rows).text(),
    ]
    return "\n".join([*lines, *differences(result), result["protocol"]])


def baseline_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and loss of each baseline."""
    losses = {name: found["nll"] for name, found in result["baselines"].items()}
    return [(name.replace("_", " "), statistics.written(loss, 4)) for name, loss in losses.items()]


def differences(result: dict[str, Any]) -> list[str]:
    """The model minus each baseline, in standard errors where there is one."""
    lines = []
    for name, difference in result["model_minus"].items():
        verdict = "better" if difference["value"] < 0 else "worse"
        if error := difference["standard_error"]:
            verdict = f"{abs(difference['value']) / error:.1f} standard errors {verdict}"
        lines.append(f"model - {name.replace('_', ' ')}: {difference['value']:+.4f} ({verdict})")
    if any(difference["standard_error"] is None for difference in result["model_minus"].values()):
        lines.append(statistics.NO_ERROR)
    return lines


def model_scores(
    loaded: LoadedModel,
    hidden: list[HiddenProtein],
    length: int | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By protein, losses [targets] float64 in nats among the 20 amino acids, and hits [targets].

    Arguments as of `evaluate`.

    Raises:
        NotFinite: a loss is not finite.
    """
    pieces, batches, engine = in_rows(loaded, hidden, length, tokens_per_batch)
    before = len(loaded.vocabulary.prefix_ids)
    losses = [np.empty(len(h.targets)) for h in hidden]
    hits = [np.empty(len(h.targets), bool) for h in hidden]

    def inputs(batch: RowBatch) -> tuple[Any, np.ndarray]:
        found = hidden_batch(loaded, hidden, [pieces[m] for m in batch.members], batch)
        return found.features, found.columns

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


def in_rows(
    loaded: LoadedModel,
    hidden: list[HiddenProtein],
    length: int | None,
    tokens_per_batch: int | None,
) -> tuple[Pieces, list[RowBatch], Engine]:
    """Proteins cut to what a row of `length` tokens holds, their batches, and the engine."""
    limit, engine = residues_in_row(loaded, length), Engine(loaded)
    pieces = [(i, *p) for i, h in enumerate(hidden) for p in even_pieces(len(h.sequence), limit)]
    tokens = [stop - start + loaded.vocabulary.num_specials for _, start, stop in pieces]
    return pieces, engine.one_a_row(tokens, tokens_per_batch), engine


class HiddenBatch(NamedTuple):
    """Proteins with residues hidden from the model.

    features: what the model reads; true: [rows, length] int32 tokens; hidden: [rows, length] bool,
    the targets; columns: [rows, length] int32, the residue's index in AMINO_ACIDS at targets.
    """

    features: dict[str, Any]
    true: np.ndarray
    hidden: np.ndarray
    columns: np.ndarray


def hidden_batch(
    loaded: LoadedModel, hidden: list[HiddenProtein], members: Pieces, batch: RowBatch
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
    shown, filled = features(loaded, batch, true), batch.fill(columns, -1)
    if readout.predicts_residues:
        shown = readout.hide(shown, filled >= 0, vocabulary.hides)
    true_tokens = batch.fill(true, vocabulary.pad_id)
    return HiddenBatch(shown, true_tokens, filled >= 0, np.maximum(filled, 0))


def _score(
    model: Any, params: Any, inputs: Any, amino_acids: AminoAcids
) -> tuple[jax.Array, jax.Array]:
    """Loss and top-1 hit [rows, length] of the true residue, among the 20 amino acids."""
    batch, columns = inputs
    logits = model.readouts[0].align(model.apply({"params": params}, batch))
    logits = residue_logits(logits, amino_acids)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    nll = -jnp.take_along_axis(log_probabilities, columns[..., None], axis=-1)[..., 0]
    return nll, jnp.argmax(logits, axis=-1) == columns
