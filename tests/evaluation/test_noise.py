"""Scores by noise level, and generated proteins."""

from __future__ import annotations

import numpy as np
import pytest
from scored import bare_logits
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.heldout import hide
from protlm_jax.evaluation.noise import by_noise_level, generate
from protlm_jax.vocabularies import AMINO_ACIDS

RNG = np.random.default_rng(0)
PROTEINS = {f"p{i}": "".join(RNG.choice(list(AMINO_ACIDS), n)) for i, n in enumerate((12, 12, 9))}


def test_each_level_is_one_forward_of_what_it_hides() -> None:
    model = loaded("dplm")
    result = by_noise_level(model, PROTEINS, seed=3, levels=2)
    vocabulary, per_level = model.vocabulary, []
    for level, row in zip((0.5, 1.0), result["levels"], strict=True):
        losses = []
        for sequence in PROTEINS.values():
            targets = hide(sequence, 3, level).targets
            logits = bare_logits(model, sequence, targets.tolist())[:, vocabulary.amino_acid_ids]
            chances = logits - np.logaddexp.reduce(logits, axis=-1)[:, None]
            columns = [AMINO_ACIDS.index(sequence[at]) for at in targets]
            losses.append(-chances[targets, columns])
        assert row["noise"] == level and row["residues"] == sum(map(len, losses))
        assert row["nll"]["value"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)
        per_level.append([loss.mean() for loss in losses])
    assert result["levels"][1]["residues"] == 11 + 11 + 8
    expected = np.average(np.mean(per_level, axis=0), weights=[11, 11, 8])
    assert result["bound"]["value"] == pytest.approx(expected, rel=1e-4)


def test_templates_are_filled_and_nothing_else_changes() -> None:
    model, templates = loaded("dplm"), ["M____KV_", "_" * 21, "MKV", "____X"]
    made = generate(model, templates, steps=4, seed=1, tokens_per_batch=64)
    for template, protein in zip(templates, made, strict=True):
        assert len(protein) == len(template)
        for asked, found in zip(template, protein, strict=True):
            assert found in AMINO_ACIDS if asked == "_" else found == asked
    again = generate(model, templates, steps=4, seed=1, tokens_per_batch=64)
    assert again == made != generate(model, templates, steps=4, seed=2, tokens_per_batch=64)


def test_what_cannot_be_generated_or_scored() -> None:
    with pytest.raises(ProtlmError, match="its readout is causal"):
        generate(loaded("gpt2"), ["___"])
    with pytest.raises(ProtlmError, match="its readout is denoising"):
        by_noise_level(loaded("t5"), PROTEINS, seed=0)
    with pytest.raises(ProtlmError, match="template 2 has 80 places; tiny-bert reads 62 at once"):
        generate(loaded("bert"), ["__", "_" * 80])
    with pytest.raises(ProtlmError, match="'template 1', position 2"):
        generate(loaded("dplm"), ["_*"])
    with pytest.raises(ProtlmError, match="template 1 has spaces"):
        generate(loaded("dplm"), ["_ _"])
    with pytest.raises(ProtlmError, match="steps 0 must be at least 1"):
        generate(loaded("dplm"), ["_"], steps=0)
    with pytest.raises(ProtlmError, match="no protein has a standard residue"):
        by_noise_level(loaded("dplm"), {"short": "M"}, seed=0)
