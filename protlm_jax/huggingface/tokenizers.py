"""Writes tokenizer files with which `transformers` gives our ids, with or without spaces.

The published ProtBert and ProtT5 tokenizers split on spaces, so an unspaced protein silently
becomes unknown tokens. These files split every character themselves. Only JSON and text are
written: no library is needed.

Tools choose a model's class by its tokenizer's, so that one is the family's own where it gives our
ids for residues with and without spaces: `EsmTokenizer` does, those of BERT and T5 do not.
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any, Literal

from protlm_jax.vocabularies import Vocabulary
from protlm_jax.vocabularies.structure import LETTERS, STRUCTURES

# transformers' name for a special token around a protein, by how the token is spelled.
_BRACKETED = re.compile(r"<.+>|\[.+\]")
_ROLES = {"cls": "cls_token", "sep": "sep_token", "s": "bos_token", "/s": "eos_token"}


def write_tokenizer(
    vocabulary: Vocabulary,
    folder: Path,
    rare_residues: Literal["X", "keep"] = "X",
    max_length: int = 0,
    closing_type: int | None = None,
    as_esm: bool = False,
) -> None:
    """Writes tokenizer.json, its two small companions and, for tokens of BERT and ESM, vocab.txt.

    `AutoTokenizer.from_pretrained(folder)` then upper-cases, drops whitespace, and adds
    the specials as `Vocabulary.encode` does. Unlike ours it cannot refuse a character: those that
    are no residue become the unknown token, or their own where the vocabulary has one. As
    `EsmTokenizer` it reads vocab.txt instead: lower case is unknown and rare residues are kept.

    Args:
        vocabulary: whose ids.
        folder: an existing folder.
        rare_residues: "X" maps U, Z, O and B to X; "keep" gives them their own ids.
        max_length: tokens that the model takes at most; 0 for no limit.
        closing_type: of a model that takes `token_type_ids`, that of the last special token: 0 as
            of all else, but for the second half of a pair, in BERT. None where it takes none.
        as_esm: whether to name `EsmTokenizer` as the class; see `fits_esm`.
    """
    roles = _roles(vocabulary)
    config: dict[str, Any] = {
        "tokenizer_class": "EsmTokenizer" if as_esm else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if closing_type is not None else []),
            "attention_mask",
        ],
        **roles,
    }
    if max_length:
        config["model_max_length"] = max_length
    if "[PAD]" in vocabulary.tokens:
        config["do_lower_case"] = False  # `BertTokenizer.from_pretrained` is right with spaces then
    _dump(folder / "tokenizer.json", _tokenizer(vocabulary, rare_residues == "X", closing_type))
    _dump(folder / "tokenizer_config.json", config)
    _dump(folder / "special_tokens_map.json", roles)
    if fits_esm(vocabulary) or "[PAD]" in vocabulary.tokens:
        (folder / "vocab.txt").write_text("\n".join(vocabulary.tokens) + "\n")


def fits_esm(vocabulary: Vocabulary) -> bool:
    """Whether `EsmTokenizer` gives our ids: its names of the specials, and no longer pieces."""
    v = vocabulary
    specials = (*v.prefix_ids, *v.suffix_ids, v.pad_id, v.unk_id, v.mask_id)
    names = ["<cls>", "<eos>", "<pad>", "<unk>", "<mask>"]
    longer = [t for t in v.tokens if len(t) > 1 and not _BRACKETED.fullmatch(t)]
    return [v.tokens[i] for i in specials if i is not None] == names and not longer


def _roles(vocabulary: Vocabulary) -> dict[str, Any]:
    tokens = vocabulary.tokens
    roles: dict[str, Any] = {
        "pad_token": tokens[vocabulary.pad_id],
        "unk_token": tokens[vocabulary.unk_id],
    }
    for default, ids in (
        ("bos_token", vocabulary.prefix_ids),
        ("eos_token", vocabulary.suffix_ids),
    ):
        roles |= {_ROLES.get(tokens[i].strip("[]<>").lower(), default): tokens[i] for i in ids}
    if sentinels := [t for t in tokens if t.startswith("<extra_id_")]:
        roles["additional_special_tokens"] = sentinels
    if vocabulary.mask_id is not None and tokens[vocabulary.mask_id] not in sentinels:
        roles["mask_token"] = tokens[vocabulary.mask_id]
    return roles


def _tokenizer(vocabulary: Vocabulary, rare_to_x: bool, closing_type: int | None) -> dict[str, Any]:
    """tokenizer.json: normalise, split into characters, look up, put the specials around."""
    # Only these are found inside a text: a piece of several residues must not be.
    roles = {vocabulary.pad_id, vocabulary.unk_id, vocabulary.mask_id}
    roles |= {*vocabulary.prefix_ids, *vocabulary.suffix_ids}
    specials = [
        (i, t) for i, t in enumerate(vocabulary.tokens) if i in roles or _BRACKETED.fullmatch(t)
    ]
    upper = [_replace({"String": c}, c.upper()) for c in string.ascii_lowercase]
    normalizers = [_replace({"Regex": r"\s+"}, ""), *([] if vocabulary.structured else upper)]
    normalizers += [_replace({"Regex": "[UZOB]"}, "X")] if rare_to_x else []
    piece = "."
    if vocabulary.structured:  # a residue alone is a pair without a structure
        piece = f"[A-Z#][{STRUCTURES}#]|."
        alone = ((a, a.replace("X", "#") + "#") for a in LETTERS)
        normalizers += [_replace({"Regex": f"{a}(?![a-z#])"}, pair) for a, pair in alone]
        normalizers += [_replace({"Regex": f"X(?=[{STRUCTURES}#])"}, "#")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags, "special": True} for i, t in specials],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": piece},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": _template(vocabulary, closing_type),
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {t: i for i, t in enumerate(vocabulary.tokens)},
            "unk_token": vocabulary.tokens[vocabulary.unk_id],
        },
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _template(vocabulary: Vocabulary, closing_type: int | None) -> dict[str, Any]:
    """prefix A suffix; in a pair A and B are each followed by the suffix's first token.

    With token types B has type 1, and what follows the suffix's first token (XLNet's <cls>) the
    closing type.
    """

    def special(i: int, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": vocabulary.tokens[i], "type_id": segment}}

    def text(name: str, segment: int) -> list[dict[str, Any]]:
        end = [special(i, segment) for i in vocabulary.suffix_ids[:1]]
        return [{"Sequence": {"id": name, "type_id": segment}}, *end]

    first = [special(i, 0) for i in vocabulary.prefix_ids] + text("A", 0)
    last = [special(i, closing_type or 0) for i in vocabulary.suffix_ids[1:]]
    return {
        "type": "TemplateProcessing",
        "single": first + last,
        "pair": first + text("B", 0 if closing_type is None else 1) + last,
        "special_tokens": {
            vocabulary.tokens[i]: {
                "id": vocabulary.tokens[i],
                "ids": [i],
                "tokens": [vocabulary.tokens[i]],
            }
            for i in {*vocabulary.prefix_ids, *vocabulary.suffix_ids}
        },
    }


def _dump(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
