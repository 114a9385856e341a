"""Precision of predicted contacts, by hand and by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import contacts
from protlm_jax.models import FAMILIES

RNG = np.random.default_rng(0)
PROTEINS = {"a": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIE", "b": "MKVL", "c": "GAVLIWCXKTAYIAKQR"}


def test_precision_of_the_surest_pairs_by_brute_force() -> None:
    residues = 40
    scores = RNG.random((residues, residues))
    scores = scores + scores.T
    true = RNG.random((residues, residues)) < 0.2
    true = true | true.T
    found = contacts.precisions(scores, true)
    for name, (nearest, end) in {"short": (6, 11), "medium": (12, 23), "long": (24, 99)}.items():
        pairs = [
            (-scores[i, j], true[i, j])
            for i in range(residues)
            for j in range(i + 1, residues)
            if nearest <= j - i <= end
        ]
        hits = [hit for _, hit in sorted(pairs)]
        for label, count in (("L", 40), ("L/2", 20), ("L/5", 8)):
            assert found[name][label] == pytest.approx(np.mean(hits[:count])), (name, label)
        assert found[name]["chance"] == pytest.approx(np.mean(hits))


def test_what_knows_the_contacts_is_right_and_what_does_not_is_at_chance() -> None:
    true = np.zeros((60, 60), bool)
    i, j = np.triu_indices(60, 24)
    chosen = RNG.choice(len(i), 100, replace=False)
    true[i[chosen], j[chosen]] = True
    assert contacts.precisions(true.astype(float), true)["long"]["L"] == 1.0
    draws = [contacts.precisions(RNG.random((60, 60)), true)["long"] for _ in range(100)]
    chance = 100 / len(i)
    assert draws[0]["chance"] == pytest.approx(chance)
    assert np.mean([d["L"] for d in draws]) == pytest.approx(chance, rel=0.1)


def test_proteins_without_a_pair_of_that_range_are_left_out() -> None:
    assert set(contacts.precisions(np.zeros((13, 13)), np.zeros((13, 13), bool))) == {
        "short",
        "medium",
    }


def test_a_protein_is_predicted_the_same_in_any_batch(small_model, assert_close) -> None:
    loaded = small_model("esm2")
    together = dict(contacts.predict(loaded, PROTEINS, tokens_per_batch=64))
    assert set(together) == set(PROTEINS)
    for name, sequence in PROTEINS.items():
        ((_, alone),) = contacts.predict(loaded, {name: " ".join(sequence.lower())})
        assert alone.shape == (len(sequence), len(sequence))
        assert_close(together[name], alone, 1e-5, name)
        np.testing.assert_allclose(alone, alone.T, atol=1e-6)


def test_evaluation_counts_every_protein_once(small_model) -> None:
    loaded = small_model("esm2")
    pairs = {name: np.array([[0, len(s) - 1]]) for name, s in PROTEINS.items()}
    result = contacts.evaluate(loaded, PROTEINS, pairs)
    ranges = result["ranges"]
    counted = [ranges[kind]["precision"]["L"]["proteins"] for kind in contacts.RANGES]
    assert counted == [2, 2, 1]
    expected = contacts.precisions(
        dict(contacts.predict(loaded, PROTEINS))["a"], contacts.contact_map(pairs["a"], 31, "a")
    )
    assert ranges["long"]["precision"]["L/2"]["value"] == expected["long"]["L/2"]
    assert "3 proteins" in contacts.summary(result)


def test_what_cannot_be_evaluated_is_refused(small_model, tmp_path: Path) -> None:
    with pytest.raises(ProtlmError, match="small-bert has no contact head"):
        contacts.predict(small_model("bert"), PROTEINS)
    with pytest.raises(ProtlmError, match="'bad', position 3"):
        contacts.predict(small_model("esm2"), {"bad": "MK*"})
    with pytest.raises(ProtlmError, match="no contacts are given for 'a'"):
        contacts.evaluate(small_model("esm2"), PROTEINS, {})
    with pytest.raises(ProtlmError, match="'x' name residue 7, the protein has 7"):
        contacts.contact_map(np.array([[0, 7]]), 7, "x")
    np.savez(tmp_path / "good.npz", a=np.array([[1, 2]], np.uint16))
    assert contacts.read_contacts(tmp_path / "good.npz")["a"].tolist() == [[1, 2]]
    np.savez(tmp_path / "bad.npz", a=np.zeros((3, 3)))
    with pytest.raises(ProtlmError, match=r"'a' is an array float64\[3, 3\]"):
        contacts.read_contacts(tmp_path / "bad.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ProtlmError, match=r"text.npz is no .npz file"):
        contacts.read_contacts(tmp_path / "text.npz")
    with pytest.raises(ProtlmError, match=r"gone.npz cannot be read"):
        contacts.read_contacts(tmp_path / "gone.npz")


def test_only_families_like_esm2_have_a_contact_head() -> None:
    with_head = {name for name, f in FAMILIES.items() if hasattr(f.module, "contacts")}
    assert "esm2" in with_head and not with_head & {"bert", "t5", "xlnet", "transformer_xl"}


def test_weights_given_by_hand_are_those_of_the_head(small_model, assert_close) -> None:
    loaded = small_model("esm2")
    own = contacts.own_head(loaded)
    ((_, by_head),) = contacts.predict(loaded, {"a": PROTEINS["a"]})
    weights = contacts.Weights(own.kernel, own.bias)
    ((_, by_hand),) = contacts.predict(loaded, {"a": PROTEINS["a"]}, weights=weights)
    tokens = loaded.vocabulary.encode(PROTEINS["a"])[None]
    ones = np.ones_like(tokens)
    batch = {"input_tokens": tokens, "segment_ids": ones, "positions": np.cumsum(ones, 1) - 1}
    of_model = loaded.model.apply({"params": loaded.params}, batch, method="contacts")
    assert_close(by_head, np.asarray(of_model)[0, 1:-1, 1:-1], 1e-5)
    assert_close(by_hand, by_head, 1e-6)
