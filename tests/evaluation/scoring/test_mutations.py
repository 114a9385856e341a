"""Notations of mutations: each has one meaning, or a reason why not."""

from __future__ import annotations

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.mutations import check, mutate, parse_mutations, restored

WILDTYPE = "MSKGEELFTG"

MEANINGS = {
    **dict.fromkeys(("S2G", "s2g", " S2G ", "S02G", "S 2 G", "S2.0G", "p.S2G"), "MGKGEELFTG"),
    **dict.fromkeys(("Ser2Gly", "p.Ser2Gly", "p.(Ser2Gly)", "SER2GLY"), "MGKGEELFTG"),
    "NP_000001.2:p.Ser2Gly": "MGKGEELFTG",
    **dict.fromkeys(("S2G:K3R", "S2G,K3R", "S2G;K3R", "S2G/K3R", "S2G K3R"), "MGRGEELFTG"),
    **dict.fromkeys(("S2G+K3R", "S2GK3R", "S2G_K3R", "S2G, K3R", "K3R:S2G"), "MGRGEELFTG"),
    **dict.fromkeys(("p.[Ser2Gly;Lys3Arg]", "p.S2G:p.K3R", "p.[(Ser2Gly;Lys3Arg)]"), "MGRGEELFTG"),
    **dict.fromkeys(("", "WT", "wt", "_wt", "p.=", "S2S", "S2=", "p.Ser2="), WILDTYPE),
    **dict.fromkeys(("S2del", "S2-", "p.Ser2del"), "MKGEELFTG"),
    "S2_G4del": "MEELFTG",
    **dict.fromkeys(("S2_K3insGP", "p.Ser2_Lys3insGlyPro"), "MSGPKGEELFTG"),
    "S2delinsGP": "MGPKGEELFTG",
    "p.Ser2_Lys3delinsGly": "MGGEELFTG",
    "S2dup": "MSSKGEELFTG",
    "S2_G4dup": "MSKGSKGEELFTG",
    "E5_E6insW:S2del:F8Y": "MKGEWELYTG",
}

REASONS = {
    **dict.fromkeys(("S2*", "Ser2Ter", "S2_K3ins*", "*2S"), "stops are not scored"),
    **dict.fromkeys(("S2fs", "p.Ser2Lysfs*5", "S2ext"), "frameshifts"),
    **dict.fromkeys(("2G", "2_3del", "-2G"), "does not name the wild-type residue"),
    **dict.fromkeys(("S2", "S", "MISSENSE", "NA", "S2?", "A42GG"), "is no mutation like A42G"),
    **dict.fromkeys(("S2X", "S2U", "U2G", "S2B", "Sec2Gly", "S2_K3insX"), "none of the 20"),
    **dict.fromkeys(("S2G:S2A", "S2G:S2G", "S2_G4del:K3R", "S2_K3insG:S2_K3insA"), "twice"),
    **dict.fromkeys(("S2G:", ":S2G", "S2G,,K3R"), "cut off"),
    "p.[Ser2Gly];[Lys3Arg]": "more than one allele",
    "S2_G4insA": "between two neighbours",
    "G4_S2del": "must come after",
    "S2_K3ins": "nothing is inserted",
    "S2delG": "G is inserted",
    "S2_K3insgp": "GP or as GlyPro",
    "S2Gly": "mixes letters",
    "A" + "1" * 5000 + "G": "a position of 5,000 digits",
}


@pytest.mark.parametrize("text", MEANINGS)
def test_notations_with_one_meaning(text: str) -> None:
    edits = parse_mutations(text)
    check(edits, WILDTYPE)
    assert mutate(edits, WILDTYPE).sequence == MEANINGS[text]
    moved = "".join(str(int(c) + 4) if c.isdigit() and c != "0" else c for c in text)
    if "N" not in text:
        assert mutate(parse_mutations(moved, -4), WILDTYPE).sequence == MEANINGS[text]


@pytest.mark.parametrize("text", REASONS)
def test_what_is_refused_says_why(text: str) -> None:
    with pytest.raises(ProtlmError) as error:
        parse_mutations(text)
    assert REASONS[text] in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A3G", "A3G: expected A at position 3 of the wild type, found K"),
        ("M0L", "position 0 is outside"),
        ("S-2G", "position -2 is outside"),
        ("Q11E", "position 11 is outside of the wild type, which has 10 residues"),
        ("S2G:A3G", "A3G: expected A"),
        ("S2_A3insG", "expected A at position 3"),
        ("A2=", "expected A at position 2"),
    ],
)
def test_the_wild_type_must_match(text: str, message: str) -> None:
    with pytest.raises(ProtlmError) as error:
        check(parse_mutations(text), WILDTYPE)
    assert message in str(error.value)


def test_substitutions_are_undone() -> None:
    edits = parse_mutations("S2G:K3R")
    check(edits, "MGRGEELFTG", mutated=True)
    assert restored(edits, "MGRGEELFTG") == WILDTYPE
    with pytest.raises(ProtlmError, match="expected R at position 3 of the mutated sequence"):
        check(edits, WILDTYPE[:1] + "G" + WILDTYPE[2:], mutated=True)
