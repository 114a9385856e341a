"""The vocabulary of a Hugging Face folder's own tokenizer, from whichever files it has.

tokenizer.json (WordLevel, WordPiece, Unigram, BPE), vocab.txt, vocab.json, or spiece.model, with
the roles of the special tokens in tokenizer_config.json and special_tokens_map.json. Pieces are
read, not rules: every residue becomes the one token that spells it, as in text with a space between
residues.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.huggingface.tensor_files import refuse_pointer
from protlm_jax.models.exchange import Exchange
from protlm_jax.storage.json_files import read_json, read_text
from protlm_jax.vocabularies import BUILT_IN, RARE, RESIDUES, Vocabulary
from protlm_jax.vocabularies.files import custom_vocabulary

log = logging.getLogger(__name__)

# In the config.json of an export: such a folder may be written over, and its tokenizer says what
# becomes of rare residues.
MARK = "protlm_jax_version"

_MOST_GAPS = 10_000  # ids without a token that a vocabulary may have

# What reading a value of another type or shape than expected raises.
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)

# How SentencePiece and byte-level BPE write the space before a word.
_WORD_STARTS = ("\u2581", "\u0120")

_T5_SENTINELS = 100

# How a role's token is spelled when no file says it.
_SPELLINGS = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>", "<PAD>"),
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>", "<extra_id_0>"),
    "cls_token": ("[CLS]", "<cls>", "<s>"),
    "sep_token": ("[SEP]", "<sep>", "</s>"),
    "eos_token": ("</s>", "<eos>", "<EOS>"),
}


@dataclass(frozen=True)
class _Stored:
    """Pieces by id as a file has them; around: ids before and after a text, None if not said."""

    file: Path
    pieces: Mapping[int, str]
    around: tuple[list[int], list[int]] | None = None
    unknown: str | None = None


def read_vocabulary(folder: Path, uncounted: int = -1) -> Vocabulary:
    """The vocabulary of a folder: one of ours where the tokens are ours, else a custom one.

    `uncounted` is the token that RoBERTa's class gives no position (config.json's `pad_token_id`).

    Raises:
        ProtlmError: the folder has no tokenizer, it cannot be read, or it has no single token for
            each of the 20 amino acids; or a protein has the token `uncounted`.
    """
    model_type = _json(folder, "config.json").get("model_type")
    exchange = next((e for e in EXCHANGES.values() if e.model_type == model_type), None)
    stored = _read_pieces(folder, model_type == "t5")
    try:
        tokens = _tokens(stored)
        ours = next((v for v in BUILT_IN if v.tokens == tokens), None)
        vocabulary = ours or _custom(folder, exchange, stored, tokens)
        if uncounted in (*vocabulary.residue_ids, *vocabulary.prefix_ids, *vocabulary.suffix_ids):
            raise ProtlmError(
                f"config.json says pad_token_id {uncounted}, which is the token "
                f"{tokens[uncounted]!r} here: they are of different models"
            )
        return vocabulary
    except ProtlmError as error:
        raise ProtlmError(f"{stored.file}: {error}") from error
    except _WRONG as error:
        raise _no_tokenizer(stored.file, error) from error


def rare_residues(folder: Path, exchange: Exchange, vocabulary: Vocabulary) -> Literal["X", "keep"]:
    """What becomes of U, Z, O and B in text that the folder's users give to its model.

    A tokenizer.json that maps them to X says so, and one of ours that does not keeps them. Other
    tokenizers keep what they have ids for; but users of ProtTrans's models map them to X before
    their tokenizers see them, as their authors do.

    Raises:
        ProtlmError: tokenizer.json cannot be read.
    """
    file = folder / "tokenizer.json"
    normalizer = read_json(file).get("normalizer") if file.exists() else None
    try:
        if set(RARE) <= _mapped_to_x(normalizer):
            return "X"
    except _WRONG as error:
        raise _no_tokenizer(file, error) from error
    own = file.exists() and MARK in _json(folder, "config.json")
    known = set(RARE) <= set(vocabulary.tokens) or not {"X", "A#"} & set(vocabulary.tokens)
    return "keep" if known and (own or exchange.keeps_rare) else "X"


def _mapped_to_x(normalizer: Any) -> set[str]:
    """The letters that a normalizer of tokenizer.json replaces by X."""
    if normalizer is None:
        return set()
    if normalizer["type"] == "Sequence":
        return set().union(*map(_mapped_to_x, normalizer["normalizers"]))
    if normalizer["type"] != "Replace" or normalizer["content"] != "X":
        return set()
    pattern = normalizer["pattern"]
    if "String" in pattern:
        return {pattern["String"]}
    # Only a list of letters: a pattern of another origin may take for ever.
    listed = re.fullmatch(r"\[?([A-Za-z|]+)\]?", pattern["Regex"])
    return set(listed[1]) if listed else set()


def model_max_length(folder: Path) -> int | None:
    """Tokens that the folder's tokenizer lets through; None where it does not say.

    Raises:
        ProtlmError: tokenizer_config.json cannot be read.
    """
    value = _json(folder, "tokenizer_config.json").get("model_max_length")
    # transformers writes 10**30 for no limit.
    return value if type(value) is int and 8 <= value <= 10**6 else None


def _no_tokenizer(file: Path, error: Exception) -> ProtlmError:
    return ProtlmError(f"{file} is not a tokenizer's file ({error!r:.200}): copy it again")


def _custom(
    folder: Path, exchange: Exchange | None, stored: _Stored, tokens: tuple[str, ...]
) -> Vocabulary:
    ids = {token: i for i, token in enumerate(tokens)}
    joined = [t for t in tokens if len(t) > 1 and set(t) <= set(RESIDUES)]
    if joined and exchange and exchange.unspaced:
        raise ProtlmError(
            f"it joins residues into {len(joined)} longer pieces ({', '.join(joined[:3])}...), and "
            f"its model, as ProtGPT2, was trained on these: it has no distribution over single "
            f"residues that could be embedded, scored or measured here. What is missing is a "
            f"tokenizer of one token a residue, with a model trained on it"
        )
    roles, ends = _roles(folder, ids), exchange and exchange.ends
    unknown = ids.get(stored.unknown or "", roles.get("unk_token"))
    if unknown is None and ends:  # their tokenizer refuses what it does not know
        unknown = roles.get("pad_token")
    if unknown is None:
        raise ProtlmError("no unknown token: name it as unk_token in special_tokens_map.json")
    if ends and set(ends) <= ids.keys():
        before, after = [ids[ends[0]]], [ids[ends[1]]]
    elif stored.around is not None:
        before, after = stored.around
    else:
        before, after = _around(exchange.around if exchange else ((), ()), roles)
    if exchange and exchange.task == "text-generation" and not before:
        log.warning(
            "%s puts no token before a protein: its first residue has no probability and is left "
            "out of scores. If the model was trained with one, a tokenizer.json with a template "
            "(docs/exports.md shows one) brings it",
            stored.file,
        )
    vocabulary = custom_vocabulary(
        tokens,
        pad_id=roles.get("pad_token", unknown),
        unk_id=unknown,
        mask_id=roles.get("mask_token"),
        prefix_ids=before,
        suffix_ids=after,
    )
    if joined:
        log.warning(
            "%s joins residues into %d longer pieces (%s...); here every residue is one token",
            stored.file,
            len(joined),
            ", ".join(joined[:3]),
        )
    return vocabulary


def _tokens(stored: _Stored) -> tuple[str, ...]:
    """The tokens in the order of their ids, residues as plain letters.

    Where a letter is there twice, with and without the mark of a word's start, text with spaces
    between residues uses the first; the second is written as WordPiece writes it, "##A".
    """

    def starts_word(piece: str) -> bool:
        return len(piece) > 1 and piece[0] in _WORD_STARTS

    marked = {piece[1:] for piece in stored.pieces.values() if starts_word(piece)}
    most = len(stored.pieces) + _MOST_GAPS
    for i, piece in stored.pieces.items():
        if not isinstance(piece, str) or type(i) is not int or not 0 <= i < most:
            raise ProtlmError(
                f"token {piece!r:.60} has id {i!r:.60}; the ids of {len(stored.pieces)} tokens are "
                f"whole numbers from 0 to {most - 1}: copy the file again"
            )
    tokens = []
    for i in range(max(stored.pieces, default=-1) + 1):
        piece = stored.pieces.get(i, f"<unused_{i}>")
        if starts_word(piece):
            piece = piece[1:]
        elif piece in marked:
            piece = f"##{piece}"
        tokens.append(piece)
    return tuple(tokens)


def _read_pieces(folder: Path, has_sentinels: bool) -> _Stored:
    """The pieces of the best file that the folder has."""
    if (file := folder / "tokenizer.json").exists():
        return _read_tokenizer_json(file)
    if (file := folder / "vocab.txt").exists():
        refuse_pointer(file)
        lines = dict(enumerate(read_text(file).splitlines()))
        return _Stored(file, lines | _added(folder))
    if (file := folder / "vocab.json").exists():
        try:
            return _Stored(
                file, {i: piece for piece, i in read_json(file).items()} | _added(folder)
            )
        except TypeError as error:  # an id that is no number
            raise _no_tokenizer(file, error) from error
    if (file := folder / "spiece.model").exists():
        pieces = _read_sentencepiece(file)
        if has_sentinels and "<extra_id_0>" not in pieces.values():
            # T5's tokenizer puts its sentinels after the pieces, the first one last.
            count = _json(folder, "tokenizer_config.json").get("extra_ids", _T5_SENTINELS)
            if type(count) is not int or not 0 <= count <= _MOST_GAPS:
                raise ProtlmError(f"{folder / 'tokenizer_config.json'}: extra_ids is {count!r:.60}")
            last = len(pieces) + count - 1
            pieces |= {last - i: f"<extra_id_{i}>" for i in range(count)}
        return _Stored(file, pieces | _added(folder))
    raise ProtlmError(
        f"{folder} has none of tokenizer.json, vocab.txt, vocab.json and spiece.model, so nobody "
        f"knows what its ids mean: copy one from where the weights came from"
    )


def _read_tokenizer_json(file: Path) -> _Stored:
    refuse_pointer(file)
    content = read_json(file)
    try:
        model = content["model"]
        vocab = model["vocab"]
        if isinstance(vocab, list):
            pieces = {i: piece for i, (piece, _) in enumerate(vocab)}
        else:
            pieces = {i: piece for piece, i in vocab.items()}
        pieces |= {token["id"]: token["content"] for token in content.get("added_tokens") or []}
        unknown = model.get("unk_token") or pieces.get(model.get("unk_id"))
        around = _template(content.get("post_processor"))
        for i in (*around[0], *around[1]):
            if i not in pieces:
                raise ValueError(f"post_processor adds id {i!r:.60}, which no token has")
        return _Stored(file, pieces, around, unknown)
    except _WRONG as error:
        raise _no_tokenizer(file, error) from error


def _template(processor: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """Ids that a post-processor of tokenizer.json puts before and after a text."""
    if processor is None:
        return [], []
    if processor["type"] == "Sequence":
        each = [_template(part) for part in processor["processors"]]
        return [i for part, _ in reversed(each) for i in part], [
            i for _, part in each for i in part
        ]
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if processor["type"] != "TemplateProcessing":
        return [], []  # ByteLevel moves offsets and adds nothing
    single = processor["single"]
    text = [at for at, part in enumerate(single) if "Sequence" in part]
    if len(text) != 1:
        raise ValueError(f"its template has the text {len(text)} times")
    specials = processor["special_tokens"]

    def ids(parts: list[dict[str, Any]]) -> list[int]:
        return [i for part in parts for i in specials[part["SpecialToken"]["id"]]["ids"]]

    return ids(single[: text[0]]), ids(single[text[0] + 1 :])


def _read_sentencepiece(file: Path) -> dict[int, str]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ProtlmError(
            f"{file} needs SentencePiece to be read: pip install sentencepiece, or let "
            f"transformers' AutoTokenizer load the folder and save it as tokenizer.json"
        ) from error
    refuse_pointer(file)
    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ProtlmError(f"{file} is no SentencePiece model ({error}): copy it again") from error
    try:
        return {i: model.id_to_piece(i) for i in range(model.get_piece_size())}
    except UnicodeDecodeError as error:
        raise ProtlmError(f"{file} is damaged ({error}): copy it again") from error


def _added(folder: Path) -> dict[int, str]:
    """Tokens that were added to a vocabulary after its file was made."""
    file = folder / "tokenizer_config.json"
    later = _json(folder, file.name).get("added_tokens_decoder") or {}
    before = _json(folder, "added_tokens.json")
    try:
        added = {i: token for token, i in before.items()}
        return added | {int(i): token["content"] for i, token in later.items()}
    except _WRONG as error:
        raise _no_tokenizer(file, error) from error


def _roles(folder: Path, ids: Mapping[str, int]) -> dict[str, int]:
    """Id of each role's token; roles whose token has no id are left out."""
    files = ("tokenizer_config.json", "special_tokens_map.json")
    named = {name: (value, file) for file in files for name, value in _json(folder, file).items()}
    roles = {}
    for role, spellings in _SPELLINGS.items():
        token, file = named.get(role, ("", ""))
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise ProtlmError(f"{role} in {file} is {token!r:.60}; it must be text")
        if found := [ids[candidate] for candidate in (token or "", *spellings) if candidate in ids]:
            roles[role] = found[0]
    return roles


def _around(
    named: tuple[tuple[str, ...], tuple[str, ...]], roles: Mapping[str, int]
) -> tuple[list[int], list[int]]:
    """Ids around a text by the tokenizer class that belongs to the model."""
    before, after = named
    if missing := [role for role in (*before, *after) if role not in roles]:
        raise ProtlmError(
            f"no {missing[0]}, which this kind of model needs: name it in special_tokens_map.json"
        )
    return [roles[role] for role in before], [roles[role] for role in after]


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the folder, empty where there is none."""
    return read_json(folder / name) if (folder / name).exists() else {}
