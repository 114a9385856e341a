"""SaProt as its users ask it: `#` and the structural letter at a site, and sums over 21 pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zoo

from protlm_jax import cli
from protlm_jax.evaluation.noise import generate
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.huggingface import export, load_model
from protlm_jax.models.identity import identity
from protlm_jax.vocabularies import AMINO_ACIDS, SAPROT, normalise
from protlm_jax.vocabularies.structure import STRUCTURES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PAIRS = "MdEvVpK#LdAaGv#cWy"


def test_scores_are_those_of_transformers_on_pair_strings(tmp_path: Path) -> None:
    loaded = zoo.loaded("saprot")
    folder = export(loaded, tmp_path / "hf")
    found = load_model(folder)
    assert identity(found) == identity(loaded) and found.vocabulary is SAPROT
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    (score,) = likelihoods(found, [PAIRS], softmax="vocabulary")
    for at in range(len(PAIRS) // 2):
        residue = PAIRS[2 * at]
        if residue == "#":
            assert np.isnan(score.log_probabilities[at])
            continue
        shown = PAIRS[: 2 * at] + "#" + PAIRS[2 * at + 1 :]
        with torch.no_grad():
            logits = theirs(**tokenizer(shown, return_tensors="pt")).logits[0, at + 1]
        columns = [SAPROT.tokens.index(residue + s) for s in STRUCTURES + "#"]
        expected = torch.log_softmax(logits.double(), -1)[columns].exp().sum().log().item()
        assert score.log_probabilities[at] == pytest.approx(expected, abs=1e-4)
    spaced = " ".join(PAIRS[i : i + 2] for i in range(0, len(PAIRS), 2))
    ids = SAPROT.encode(normalise(PAIRS, found.policy, record="p")).tolist()
    assert tokenizer(PAIRS)["input_ids"] == tokenizer(spaced)["input_ids"] == ids
    assert tokenizer("M E V X")["input_ids"] == SAPROT.encode("MEVX").tolist()


def test_structure_changes_the_score_and_generation_keeps_it() -> None:
    loaded = zoo.loaded("saprot")
    shown, alone = likelihoods(loaded, [PAIRS, PAIRS[::2].replace("#", "X")])
    assert shown.scored == alone.scored == 8 and abs(shown.total - alone.total) > 1e-2
    (made,) = generate(loaded, ["MdEv_p_#"], steps=3)
    assert made[:4] + made[5] + made[7] == "MdEvp#" and set(made[::2]) <= set(AMINO_ACIDS)


def test_the_verbs_read_pairs(tmp_path: Path) -> None:
    folder, fasta = export(zoo.loaded("saprot"), tmp_path / "hf"), tmp_path / "pairs.fasta"
    fasta.write_text(f">a\n{PAIRS}\n>b\nMEVKLAGW\n")
    model = ["--model", str(folder), "--input", str(fasta)]
    assert cli.main(["score", *model, "--output", str(tmp_path / "scores.csv")]) == 0
    assert "\na,9,8," in (tmp_path / "scores.csv").read_text()
    assert cli.main(["embed", *model, "--output", str(tmp_path / "e.h5")]) == 0
    evaluation = ["--fasta", str(fasta), "--output", str(tmp_path / "e.json")]
    assert cli.main(["evaluate", "--model", str(folder), *evaluation]) == 0
    assert "shown as # with" in json.loads((tmp_path / "e.json").read_text())["protocol"]
