"""Small real data that ships with the package; sources and licences are in LICENCES.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from protlm_jax.data.fasta import text_lines
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import parse_json

FILES = {
    "pretraining": "uniprot2014_nr50_sample20k.fasta.xz",
    "secondary_structure": "netsurfp2_q3_q8.jsonl.xz",
    "secondary_structure_tests": "cb513_ts115_casp_q3_q8.jsonl.xz",
    "localization": "deeploc.csv.xz",
    "gb1": "gb1.csv.xz",
    "contacts": "pdb_contacts.jsonl.xz",
    "benchmarks": "benchmarks.toml",
}
_NETSURFP = ("train", "valid", "test_new364")
SPLITS = (*_NETSURFP, "cb513", "ts115", "casp12", "casp13", "casp14")


def path(name: str) -> Path:
    """The file of a key of `FILES`; ProtlmError where the installation has lost it."""
    if name not in FILES:
        raise ProtlmError(f"no bundled data {name!r}; there is {', '.join(FILES)}")
    file = Path(str(resources.files(__name__) / FILES[name]))
    if not file.is_file():
        raise ProtlmError(f"{file} is missing: install protlm-jax again")
    return file


def json_lines(name: str) -> Iterator[dict[str, Any]]:
    """The objects of a bundled file, one on each line; ProtlmError where it is damaged."""
    file = path(name)
    for number, line in text_lines(str(file)):
        yield parse_json(line, f"{file}, line {number}", remedy="install protlm-jax again")


@dataclass(frozen=True)
class LabelledChain:
    """One protein chain with its secondary structure; all strings are of one length.

    q3: H (helix), E (strand), C (other) at each residue.
    q8: the eight DSSP states G H I E B S T C, "-" where unknown; None if unknown throughout.
    mask: "1" where the residue is resolved in the structure and so has a label, else "0".
    cb513_mask: the domain that is meant, of CB513's whole chains; None for other sets.
    identity: of the nearest training or validation chain in percent, see LICENCES.md; 0 without a
        near one, None where it was not computed.
    """

    id: str
    split: str
    seq: str
    q3: str
    q8: str | None
    mask: str
    cb513_mask: str | None = None
    identity: float | None = None


def secondary_structure(*splits: str) -> Iterator[LabelledChain]:
    """The chains of the named splits (names in `SPLITS`), in the order of the files.

    `train`, `valid` and `test_new364` are NetSurfP-2.0's training set as FLIP splits it and its
    NEW364 test set; `cb513`, `ts115` and `casp12` the test sets of the ProtTrans paper; `casp13`
    and `casp14` newer ones.
    """
    if unknown := set(splits) - set(SPLITS):
        raise ProtlmError(f"no secondary-structure split {unknown}; there is {', '.join(SPLITS)}")
    files = {
        "secondary_structure" if s in _NETSURFP else "secondary_structure_tests" for s in splits
    }
    for name in sorted(files):
        chains = (LabelledChain(**fields) for fields in json_lines(name))
        yield from (chain for chain in chains if chain.split in splits)
