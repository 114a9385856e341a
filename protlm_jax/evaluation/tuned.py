"""Predictions of a fine-tuned model: its head on its own embedding of new proteins."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import RowBatch, windows
from protlm_jax.evaluation.embedding.spec import Dtype
from protlm_jax.evaluation.engine import Engine, features, for_reading
from protlm_jax.evaluation.finite import require_finite
from protlm_jax.evaluation.probe_data import LabelledProtein, Target
from protlm_jax.models.adapters import TASK_HEAD
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.objectives.labels import LabelsObjective
from protlm_jax.partitioning import replicated
from protlm_jax.vocabularies import normalise

log = logging.getLogger(__name__)

Predicted = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class TunedModel:
    """A fine-tuned model.

    Attributes:
        loaded: its trunk, with adapters merged.
        objective, head: its task, and the parameters of the head.
        about: "targets", "level", "window" (residues at once), "means", "spreads" (of numbers),
            and what it was trained on.
        compute: dtype of the trunk.
    """

    loaded: LoadedModel
    objective: LabelsObjective
    head: Any
    about: dict[str, Any]
    compute: Dtype = "float32"

    @functools.cached_property
    def targets(self) -> tuple[Target, ...]:
        made = []
        for fields in self.about["targets"]:
            made.append(Target(**{**fields, "classes": tuple(fields["classes"])}))
        return tuple(made)

    @property
    def described(self) -> str:
        """For people: what it learned from."""
        about = self.about
        return (
            f"{about['model']}, fine-tuned on {about['train_proteins']:,} proteins of "
            f"{about['benchmark']}"
        )

    @functools.cached_property
    def _engine(self) -> Engine:
        loaded = for_reading(self.loaded, self.compute)
        head = self.head
        if loaded.mesh is not None:
            head = jax.device_put(head, replicated(loaded.mesh))
        return Engine(replace(loaded, params={**loaded.params, TASK_HEAD: head}))

    def predict(
        self, sequences: Mapping[str, str], progress: bool = False
    ) -> Iterator[tuple[str, Predicted]]:
        """(id, target -> values) in order: of classes probabilities [residues or 1, classes], of
        numbers [residues or 1].

        Raises NotFinite for a protein whose numbers are not finite.
        """
        limit, vocabulary = self.about["window"], self.loaded.vocabulary
        pieces: list[np.ndarray] = []
        owners: list[str] = []
        kept: list[slice] = []
        ahead = len(vocabulary.prefix_ids)
        plain = {n: normalise(s, self.loaded.policy, record=n) for n, s in sequences.items()}
        if self.about["level"] == "protein":
            plain = dict(zip(plain, without_middles(plain.values(), limit), strict=True))
        for name, sequence in plain.items():
            for cut in windows(len(sequence), limit):
                pieces.append(np.asarray(vocabulary.encode(sequence[cut.start : cut.stop])))
                owners.append(name)
                stop = 1 if self.about["level"] == "protein" else cut.keep_stop - cut.start
                kept.append(slice(ahead + cut.keep_start - cut.start, ahead + stop))
        engine = self._engine

        def inputs(batch: RowBatch) -> dict[str, np.ndarray]:
            tokens = [pieces[member] for member in batch.members]
            made = features(engine.loaded, batch, tokens, decoder=False)
            return {n.removeprefix("encoder_"): x for n, x in made.items()}

        batches = engine.one_a_row([len(piece) for piece in pieces], None)
        found: dict[int, np.ndarray] = {}
        for batch, answers in engine.run(
            _answers, batches, inputs, self.objective, title="predict", progress=progress
        ):
            for member, row in zip(batch.members, batch.rows, strict=True):
                found[member] = answers[row, kept[member]].copy()
        by_name: dict[str, list[np.ndarray]] = {name: [] for name in sequences}
        for member, name in enumerate(owners):
            by_name[name].append(found[member])
        for name, parts in by_name.items():
            answers = np.concatenate(parts)
            require_finite(self.loaded, answers, sequences[name], name, "the prediction")
            yield name, self._decided(answers)

    def _decided(self, answers: np.ndarray) -> Predicted:
        """Probabilities and numbers from what the head gives: [items, outputs]."""
        cut = np.cumsum(self.objective.outputs)[:-1]
        made = {}
        for place, (target, part) in enumerate(
            zip(self.targets, np.split(answers, cut, axis=-1), strict=True)
        ):
            if target.kind == "classes":
                powers = np.exp(part - part.max(axis=-1, keepdims=True))
                made[target.name] = powers / powers.sum(axis=-1, keepdims=True)
            else:
                spread, mean = self.about["spreads"][place], self.about["means"][place]
                made[target.name] = part[:, 0] * spread + mean
        return made

    def decided(self, proteins: Sequence[LabelledProtein], progress: bool = False) -> Predicted:
        """target -> classes or numbers [1, items] of all proteins, as `scores` reads them."""
        sequences = {p.id: p.sequence for p in proteins}
        found = [values for _, values in self.predict(sequences, progress)]
        return {
            t.name: np.concatenate(
                [v[t.name].argmax(axis=-1) if t.kind == "classes" else v[t.name] for v in found]
            )[None]
            for t in self.targets
        }


def without_middles(sequences: Collection[str], limit: int) -> list[str]:
    """Proteins without their middle where they are longer than `limit` residues (as DeepLoc); a
    warning says how many."""
    if cut := sum(len(sequence) > limit for sequence in sequences):
        log.warning(
            "%d of %d proteins are longer than %d residues: their middle is left out",
            *(cut, len(sequences), limit),
        )
    first, last = -(-limit // 2), limit // 2
    return [s if len(s) <= limit else s[:first] + s[len(s) - last :] for s in sequences]


def _answers(model: Any, params: Any, inputs: Any, objective: LabelsObjective) -> jax.Array:
    """[B, L, outputs] float32."""
    return jnp.concatenate(objective.answers(model, params, inputs), axis=-1)
