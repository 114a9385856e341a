"""Amino-acid vocabularies of the published families, and three of our own.

`normalise` reads what a user wrote (spaced or not, lower case, rare residues) and returns plain
upper-case letters, or an error that names the character. `Vocabulary.encode` maps letters to ids.
No letter ever becomes `<unk>` silently: no model was trained on it, and its embedding looks like
any other. Pure Python and NumPy; the SeqIO wrapper is in `data/seqio_features.py`.

Sources of the ids: `vocab.txt` of Rostlab/prot_bert and `spiece.model` of Rostlab/prot_t5_xl
(Elnaggar et al. 2021, doi:10.1109/TPAMI.2021.3095381); `vocab.txt` of facebook/esm2_t6_8M_UR50D,
the same for all sizes; `EsmcTokenizer` of transformers, which is ESM-2's with a mark between
chains; `tokenizer.json` of ProGen2, where a protein is between its ends "1" and "2" (nothing is
unknown there; <|bos|> serves as unk); RITA's first 23 ids, of 26 rows, from the files of its users;
the code of SaProt. The tokenizer files of Rostlab/prot_albert and Rostlab/prot_xlnet were not
available here and ProtTXL was never released: `prot_albert`, `prot_xlnet` and `prot_txl` are our
own layouts, the special tokens of each family before the 25 letters, and claim no compatibility
with any published file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import structure
from protlm_jax.vocabularies.residues import (
    AS_WRITTEN,
    RARE,
    RESIDUES,
    Rare,
    RareTally,
    ResidueError,
    ResiduePolicy,
    normalise,
)
from protlm_jax.vocabularies.structure import AMINO_ACIDS

__all__ = [
    "AMINO_ACIDS",
    "AS_WRITTEN",
    "RARE",
    "RESIDUES",
    "Rare",
    "RareTally",
    "ResidueError",
    "ResiduePolicy",
    "Vocabulary",
    "get_vocabulary",
    "normalise",
]

_RESIDUE_SET = frozenset(RESIDUES)
_PROT_BERT_RESIDUES = "LAGVESIKRDTPNQFYMHCWXUBZO"
_PROT_T5_RESIDUES = "ALGVSREDTIPKFQNYMHWCXBOUZ"
_ESM2_RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
_PROGEN2_RESIDUES = "ABCDEFGHIKLMNOPQRSTUVWXYZ"
_T5_SENTINELS = 100


def _constant(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A read-only int32 array, because all callers share it."""
    array = np.array(values, np.int32)
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a model; the id of a token is its index in `tokens`.

    Residue tokens are plain letters, without the mark of the original tokenizer file. The 20 amino
    acids are required; X and the rare letters are not. `encode` never writes other tokens (pieces
    of several letters, lower-case structure letters). Padding is marked by `segment_ids == 0`:
    `pad_id` may be any id.

    Attributes:
      mask_id: the token that hides a residue ([MASK]; for ProtT5 <extra_id_0>); None for causal
        models.
      prefix_ids: before every protein ([CLS]; nothing for ProtT5).
      suffix_ids: after it ([SEP]; </s>; for XLNet <sep><cls>).
    """

    name: str
    tokens: tuple[str, ...]
    pad_id: int
    unk_id: int
    mask_id: int | None
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(token, str) for token in self.tokens):
            raise ProtlmError(f"vocabulary {self.name}: not all tokens are text")
        if len(set(self.tokens)) != self.size:
            twice = next(t for t in self.tokens if self.tokens.count(t) > 1)
            raise ProtlmError(f"vocabulary {self.name}: token {twice!r} has two ids")
        if missing := [a for a in AMINO_ACIDS if not {a, f"{a}#"} & {*self.tokens}]:
            raise ProtlmError(
                f"vocabulary {self.name}: no token for the amino acid(s) {', '.join(missing)}; "
                f"every residue must be a token of one upper-case letter"
            )
        for i in (self.pad_id, self.unk_id, self.mask_id, *self.prefix_ids, *self.suffix_ids):
            if i is not None and not (isinstance(i, int) and 0 <= i < self.size):
                raise ProtlmError(
                    f"vocabulary {self.name}: id {i!r} is not one of 0 to {self.size - 1}"
                )

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @cached_property
    def structured(self) -> bool:
        """Whether a token is a residue and a structural letter (SaProt)."""
        return "A#" in self.tokens

    @cached_property
    def residue_ids(self) -> np.ndarray:
        """int32 [up to 25]: ids of all residue letters, rare ones and X included, ascending; of
        pairs, those with a residue."""
        if self.structured:
            return _constant(sorted(self.amino_acid_columns.ravel().tolist()))
        return _constant([i for i, t in enumerate(self.tokens) if t in _RESIDUE_SET])

    @cached_property
    def amino_acid_ids(self) -> np.ndarray:
        """int32 [20]: ids of the standard amino acids, in the order of `AMINO_ACIDS`; of pairs,
        those without a structure."""
        return _constant(self.amino_acid_columns[:, -1].tolist())

    @cached_property
    def amino_acid_columns(self) -> np.ndarray:
        """int32 [20, tokens]: all ids of each standard amino acid: one, or its 21 pairs. The sum of
        their probabilities is that of the residue."""
        shapes = structure.STRUCTURES + structure.UNKNOWN if self.structured else ("",)
        return _constant([[self.tokens.index(a + s) for s in shapes] for a in AMINO_ACIDS])

    @cached_property
    def hides(self) -> int | tuple[int, ...] | None:
        """The token that hides a residue: `mask_id`; of pairs, for each token another, which keeps
        its structural letter."""
        if not self.structured:
            return self.mask_id
        ids = {t: i for i, t in enumerate(self.tokens)}
        return tuple(ids.get("#" + t[1:], i) if len(t) == 2 else i for t, i in ids.items())

    @cached_property
    def letter_table(self) -> np.ndarray:
        """int32 [256]: id of each Latin-1 character, -1 where it is no residue here; of pairs,
        [structure.CODES]."""
        if self.structured:
            return _constant(structure.code_table({t: i for i, t in enumerate(self.tokens)}))
        ids = {t: i for i, t in enumerate(self.tokens) if t in _RESIDUE_SET}
        return _constant([ids.get(chr(c), -1) for c in range(256)])

    @cached_property
    def sentinel_ids(self) -> np.ndarray:
        """int32 [100] for ProtT5: ids of <extra_id_0>, <extra_id_1>, ...; [0] without sentinels."""
        count = sum(token.startswith("<extra_id_") for token in self.tokens)
        return _constant([self.tokens.index(f"<extra_id_{i}>") for i in range(count)])

    @cached_property
    def fixed_ends(self) -> tuple[int, int]:
        """How many special tokens before and after a protein stay in their places where it is read
        backwards. Others, "1" and "2", mark its N and C terminus and turn with it (ProGen2)."""

        def outside(ids: Sequence[int]) -> int:
            termini = [at for at, i in enumerate(ids) if self.tokens[i] in ("1", "2")]
            return termini[0] if termini else len(ids)

        return outside(self.prefix_ids), outside(self.suffix_ids[::-1])

    def backwards(self, tokens: np.ndarray) -> np.ndarray:
        """The ids of an encoded protein, read from its last residue to its first."""
        before, after = self.fixed_ends
        middle = slice(before, len(tokens) - after)
        return np.concatenate(
            [tokens[:before], tokens[middle][::-1], tokens[len(tokens) - after :]]
        )

    @property
    def num_specials(self) -> int:
        """How many special tokens `encode` puts around a protein: 2 for ProtBert, 1 for ProtT5."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    @property
    def hiding_id(self) -> int:
        """`mask_id`; raises ProtlmError where there is none."""
        if self.mask_id is None:
            raise ProtlmError(
                f"{self.name} has no token that hides a residue: it is for causal models; take the "
                "vocabulary of a masked or denoising model"
            )
        return self.mask_id

    def encode(self, sequence: str, *, specials: bool = True) -> np.ndarray:
        """int32 ids of a normalised sequence, between `prefix_ids` and `suffix_ids`.

        Raises:
          ProtlmError: a character that is not one of the 25 residues (run `normalise` first), or a
            residue that this vocabulary does not have.
        """
        table = self.letter_table
        if sequence.isascii():
            ids = table[np.frombuffer(sequence.encode("ascii"), np.uint8)]
        else:
            codes = np.frombuffer(sequence.encode("utf-32-le", "surrogatepass"), np.uint32)
            ids = np.where(codes < len(table), table[np.minimum(codes, len(table) - 1)], -1)
        if ids.size and ids.min() < 0:
            if structure.is_structured(sequence) and not self.structured:
                raise ProtlmError(
                    f"residues with structural letters ({structure.written(sequence)[:10]}...) "
                    f"have no ids in {self.name}, which knows residues alone: take the structure "
                    "out, or a model that reads it (SaProt)"
                )
            known = structure.LETTERS if self.structured else self.decode(self.residue_ids)
            at = next(i for i, c in enumerate(sequence) if c not in known)
            remedy = (
                f"the model knows {known} only: replace the residue or leave the protein out"
                if sequence[at] in _RESIDUE_SET
                else "pass sequences through protlm_jax.vocabularies.normalise first"
            )
            raise ProtlmError(
                f"position {at + 1}: {sequence[at]!r} has no id in {self.name}; {remedy}"
            )
        if not specials:
            return ids
        return np.concatenate([self.prefix_ids, ids, self.suffix_ids]).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The tokens of `ids`, joined, specials and padding included."""
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.size):
            raise ProtlmError(f"{self.name} has ids 0 to {self.size - 1}, not all of {ids}")
        return "".join(self.tokens[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Vocabulary:
        """The inverse of `to_dict`, also from JSON's lists; raises ProtlmError for other fields."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        try:
            return cls(**plain)
        except TypeError as error:
            raise ProtlmError(f"not a vocabulary: {error}") from error


PROT_BERT = Vocabulary(
    name="prot_bert", tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_PROT_BERT_RESIDUES),
    pad_id=0, unk_id=1, mask_id=4, prefix_ids=(2,), suffix_ids=(3,),
)  # fmt: skip

PROT_T5 = Vocabulary(
    name="prot_t5",
    tokens=("<pad>", "</s>", "<unk>", *_PROT_T5_RESIDUES)
    + tuple(f"<extra_id_{i}>" for i in reversed(range(_T5_SENTINELS))),
    pad_id=0, unk_id=2, mask_id=127, prefix_ids=(), suffix_ids=(1,),
)  # fmt: skip

PROT_ALBERT = Vocabulary(
    name="prot_albert", tokens=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *RESIDUES),
    pad_id=0, unk_id=1, mask_id=4, prefix_ids=(2,), suffix_ids=(3,),
)  # fmt: skip

PROT_XLNET = Vocabulary(
    name="prot_xlnet", tokens=("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", *RESIDUES),
    pad_id=0, unk_id=1, mask_id=4, prefix_ids=(), suffix_ids=(3, 2),
)  # fmt: skip

PROT_TXL = Vocabulary(
    name="prot_txl", tokens=("<pad>", "<unk>", "<s>", "</s>", *RESIDUES),
    pad_id=0, unk_id=1, mask_id=None, prefix_ids=(2,), suffix_ids=(3,),
)  # fmt: skip

ESM2 = Vocabulary(
    name="esm2",
    tokens=("<cls>", "<pad>", "<eos>", "<unk>", *_ESM2_RESIDUES, ".", "-", "<null_1>", "<mask>"),
    pad_id=1, unk_id=3, mask_id=32, prefix_ids=(0,), suffix_ids=(2,),
)  # fmt: skip

ESMC = replace(ESM2, name="esmc", tokens=tuple("|" if t == "<null_1>" else t for t in ESM2.tokens))

PROGEN2 = Vocabulary(
    name="progen2", tokens=("<|pad|>", "<|bos|>", "<|eos|>", "1", "2", *_PROGEN2_RESIDUES),
    pad_id=0, unk_id=1, mask_id=None, prefix_ids=(3,), suffix_ids=(4,),
)  # fmt: skip

RITA = Vocabulary(
    name="rita", tokens=("<unk>", "<PAD>", "<EOS>", *"LAGVESIKRDTPNQFYMHCW"),
    pad_id=1, unk_id=0, mask_id=None, prefix_ids=(), suffix_ids=(2,),
)  # fmt: skip

SAPROT = Vocabulary(
    name="saprot", tokens=("<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *structure.pair_tokens()),
    pad_id=1, unk_id=3, mask_id=4, prefix_ids=(0,), suffix_ids=(2,),
)  # fmt: skip

BUILT_IN = (
    PROT_BERT,
    PROT_T5,
    PROT_ALBERT,
    PROT_XLNET,
    PROT_TXL,
    ESM2,
    ESMC,
    PROGEN2,
    RITA,
    SAPROT,
)

VOCABULARIES: dict[str, Vocabulary] = {v.name: v for v in BUILT_IN}
"""By name: ours, and those of models that this process has loaded."""


def get_vocabulary(name: str) -> Vocabulary:
    """The vocabulary called `name`; raises ProtlmError where there is none."""
    if name not in VOCABULARIES:
        raise ProtlmError(f"no vocabulary {name!r}; choose one of {', '.join(VOCABULARIES)}")
    return VOCABULARIES[name]
