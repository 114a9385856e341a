"""Held-out proteins of an earlier folder stay held out, by sequence, by cluster, by resemblance."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import pytest

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.prepare import rules
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SIMILAR, SelectionRules
from protlm_jax.data.prepared import Prepared
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS

MMSEQS = """
import sys
if sys.argv[1] == "version":
    sys.exit(print("stand-in"))
query, target, hits = (open(name, mode) for name, mode in zip(sys.argv[2:5], "rrw"))
words = [
    [{s[i : i + 6] for i in range(len(s) - 5)} for s in file.read().split("\\n")[1::2]]
    for file in (query, target)
]
for i, mine in enumerate(words[0]):
    hits.writelines(f"{i}\\t0.9\\t0.9\\n" for other in words[1] if len(mine & other) > 20)
"""


@pytest.fixture(autouse=True)
def mmseqs(monkeypatch, tmp_path_factory) -> None:
    """A stand-in for MMseqs2 that counts shared words."""
    program = tmp_path_factory.mktemp("bin") / "mmseqs"
    program.write_text(f"#!{sys.executable}\n{MMSEQS}")
    program.chmod(0o755)
    monkeypatch.setattr(rules.shutil, "which", lambda _: str(program))
    rules._frozen.cache_clear()


def protein(rng: random.Random, length: int = 200) -> str:
    return "".join(rng.choices(AMINO_ACIDS, k=length))


@pytest.fixture(scope="module")
def uniref50(tmp_path_factory) -> tuple[Prepared, list[ReleaseEntry], list[ReleaseEntry]]:
    """A prepared folder of random UniRef50 clusters, half of them held out, with both halves."""
    folder, rng = tmp_path_factory.mktemp("uniref50"), random.Random(0)
    clusters = [(f"UniRef50_{i}", protein(rng)) for i in range(40)]
    text = "".join(f">{name} n=1 Tax=x TaxID=1 RepID=r\n{seq}\n" for name, seq in clusters)
    (folder / "u.fasta").write_text(text)
    half = SelectionRules(heldout_percent=50.0, release="2024_01")
    plan = PreparePlan.make(
        "uniref50", [str(folder / "u.fasta")], folder / "out", half, tokens=True, records=False
    )
    entries = [ReleaseEntry(name, seq, uniref50=name) for name, seq in clusters]
    held = [entry for entry in entries if half.side(entry) == "heldout"]
    return prepare(plan, workers=1), held, [e for e in entries if e not in held]


@pytest.fixture
def frozen(uniref50) -> SelectionRules:
    return SelectionRules(heldout_from=str(uniref50[0].folder), release="2024_01")


def test_equal_sequences_are_held_out_and_nothing_else_is(uniref50, frozen):
    _, held, others = uniref50
    assert 10 < len(held) < 30
    for release in ("2024_01", "2025_01"):
        asked = replace(frozen, release=release)
        unknown = [replace(entry, id="other", uniref50="") for entry in held + others]
        assert asked.verdicts(unknown) == ["heldout"] * len(held) + ["train"] * len(others)


def test_members_of_a_frozen_cluster_are_held_out_in_the_same_release_only(uniref50, frozen):
    _, held, others = uniref50
    rng = random.Random(1)
    members = [
        ReleaseEntry("UniRef100_m", protein(rng), uniref50=e.id) for e in (held[0], others[0])
    ]
    assert frozen.verdicts(members) == ["heldout", "train"]
    assert replace(frozen, release="2025_01").verdicts(members) == ["train", "train"]
    assert replace(frozen, release="").verdicts(members) == ["train", "train"]


def test_what_resembles_a_frozen_protein_is_left_out(uniref50, frozen):
    _, held, others = uniref50
    rng = random.Random(2)

    def relative(entry: ReleaseEntry) -> ReleaseEntry:
        """Nine in ten residues are the same."""
        letters = [c if rng.random() < 0.9 else rng.choice(AMINO_ACIDS) for c in entry.sequence]
        return ReleaseEntry("relative", "".join(letters))

    later = replace(frozen, release="2025_01")
    judged = later.verdicts(
        [relative(held[0]), relative(others[0]), ReleaseEntry("new", protein(rng))]
    )
    assert judged == [SIMILAR, "train", "train"]
    # Where the cluster is known, the cluster decides.
    in_other_cluster = replace(relative(held[0]), uniref50=others[0].id)
    assert frozen.verdicts([in_other_cluster]) == ["train"]


def test_a_later_release_is_prepared_without_them(uniref50, frozen, tmp_path):
    first, held, others = uniref50
    rng = random.Random(3)
    changed = held[1].sequence[:100] + "W" + held[1].sequence[101:]
    text = f">same\n{held[0].sequence}\n>close\n{changed}\n>new\n{protein(rng)}\n"
    (tmp_path / "later.fasta").write_text(text + f">old\n{others[0].sequence}\n")
    plan = PreparePlan.make(
        "fasta",
        [str(tmp_path / "later.fasta")],
        tmp_path / "out",
        replace(frozen, release=""),
        tokens=True,
        records=False,
    )
    later = prepare(plan, workers=1)
    assert later.splits["train"].proteins == 2
    assert later.heldout_fasta().read_text() == f">same uniref50=\n{held[0].sequence}\n"
    assert later.manifest["dropped"] == {SIMILAR: {"count": 1, "examples": ["close"]}}
    told = later.manifest["rules"]["split"]["heldout_from"]
    assert told["digest"] == first.digest and told["release"] == "2024_01"
    assert told["proteins"] == len(held) and told["similarity"]["version"] == "stand-in"
    assert str(tmp_path) not in str(later.manifest)


def test_a_folder_that_holds_nothing_out_or_changed_is_refused(uniref50, tmp_path):
    with pytest.raises(ProtlmError, match="does not exist"):
        SelectionRules(heldout_from=str(tmp_path / "none")).describe()
    (tmp_path / "manifest.json").write_bytes((uniref50[0].folder / "manifest.json").read_bytes())
    (tmp_path / "heldout.fasta").write_text(">p uniref50=\nMKV\n")
    with pytest.raises(ProtlmError, match=r"heldout.fasta has 17 bytes"):
        SelectionRules(heldout_from=str(tmp_path)).side(ReleaseEntry("p", "MKV"))
