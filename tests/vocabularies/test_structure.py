"""Residues with structural letters: what users write, SaProt's ids, and who refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protlm_jax.data.blocks import cut, entries
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.splits import is_heldout
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.mutations import check, mutate, parse_mutations
from protlm_jax.vocabularies import (
    ESM2,
    SAPROT,
    ResidueError,
    ResiduePolicy,
    normalise,
)
from protlm_jax.vocabularies.structure import is_paired, without_structure, written

PAIRED = ResiduePolicy(structure=True)
LONG = "MdEvVpKaLd" * 4


def ids(text: str) -> list[int]:
    """SaProt's formula, 5 + 21 a + s, written out."""
    a, s = "ACDEFGHIKLMNPQRSTVWY#", "pynwrqhgdlvtmfsaeikc#"
    return [5 + 21 * a.index(x) + s.index(y) for x, y in zip(text[::2], text[1::2], strict=True)]


@pytest.mark.parametrize("text", ["MdEvVp", "M#E#", "MdE##v##Wp", LONG])
def test_pairs_have_the_published_ids(text: str) -> None:
    sequence = normalise(text, PAIRED, record="p")
    assert len(sequence) == len(text) // 2
    assert SAPROT.encode(sequence).tolist() == [0, *ids(text), 2]
    assert SAPROT.size == 446 and SAPROT.decode(SAPROT.encode(sequence, specials=False)) == text
    assert normalise(sequence, PAIRED, record="p") == sequence
    assert without_structure(sequence) == text[::2].replace("#", "X")
    bare = set(text[1::2]) == {"#"}
    assert written(sequence) == (text[::2] if bare else text)


def test_residues_alone_have_no_structure() -> None:
    assert SAPROT.encode("MEX", specials=False).tolist() == ids("M#E###")
    assert normalise("mevLk", PAIRED, record="p") == "MEVLK"  # soft-masked, not pairs
    assert normalise("Md" * 3, record="p") == "MDMDMD" and is_paired(LONG)


def test_what_hides_a_residue_keeps_its_structure() -> None:
    hides = np.asarray(SAPROT.hides)
    assert hides[ids("MdE#")].tolist() == ids("#d##")
    assert hides[:5].tolist() == [0, 1, 2, 3, 4]
    assert SAPROT.amino_acid_columns.shape == (20, 21)
    assert set(ids("ApAyA#")) < {*SAPROT.amino_acid_columns[0].tolist()}
    assert ESM2.hides == 32 and ESM2.amino_acid_columns.shape == (20, 1)


def test_who_cannot_read_pairs_says_so() -> None:
    with pytest.raises(ProtlmError, match=r"residues with structural letters \(MdEvVpKaLd"):
        ESM2.encode(normalise(LONG, record="p"))
    with pytest.raises(ResidueError, match="position 3: 'J' is not") as refused:
        normalise("MdEvJp", PAIRED, record="p")
    assert refused.value.position == 5
    with pytest.raises(ProtlmError, match="capital and one lower-case letter"):
        normalise("MdE#vp", record="p")


def test_a_mutant_keeps_the_structure_of_its_wild_type() -> None:
    wildtype = normalise("MdEvVp", PAIRED, record="p")
    edits = parse_mutations("E2A")
    check(edits, wildtype)
    variant = mutate(edits, wildtype)
    assert written(variant.sequence) == "MdAvVp" and variant.positions == (1,)


def test_pairs_are_trained_on_from_a_file_and_refused_in_prepared_data(tmp_path: Path) -> None:
    fasta = tmp_path / "pairs.fasta"
    fasta.write_text(f">a\n{LONG}\n>b\n{'ACDEFGHIKL'}\n")
    config = DataConfig(fasta=str(fasta), length=40, heldout_percent=0.0)
    batch = next(open_batches(config, SAPROT, split="train", seed=0, batch_size=1))
    assert {*ids(LONG), *ids("A#C#D#")} <= set(batch["input_tokens"][0].tolist())
    with pytest.raises(ProtlmError, match="record 'a', residues with structural letters"):
        open_batches(config, ESM2, split="train", seed=0, batch_size=1)
    records = [r for b in cut(str(fasta)) for r in entries(b)]
    assert "prepared data do not hold" in str(records[0].error)  # type: ignore[union-attr]
    assert records[1].sequence == "ACDEFGHIKL"  # type: ignore[union-attr]
    paired = normalise(LONG, record="a")
    assert all(is_heldout(paired, p) == is_heldout(LONG[::2], p) for p in range(0, 100, 9))
