"""Vocabularies read from other people's tokenizers against those tokenizers in `transformers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.read_tokenizer import read_vocabulary
from protlm_jax.huggingface.tokenizers import write_tokenizer
from protlm_jax.vocabularies import PROT_BERT, PROT_T5, RESIDUES, Vocabulary

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SHUFFLED = "YWVTSRQPNMLKIHGFEDCAXBUZO"


def model_type(folder: Path, name: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": name}))


def bert_tokens(folder: Path) -> None:
    """33 tokens in an order of their own, as the published kind of file: vocab.txt alone."""
    model_type(folder, "bert")
    tokens = ["[MASK]", *SHUFFLED, "-", ".", "[CLS]", "[SEP]", "[UNK]", "|", "[PAD]"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')


def bert_resaved(folder: Path) -> None:
    bert_tokens(folder)
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, do_lower_case=False)
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)


def word_level(folder: Path) -> None:
    """A tokenizer of another library's making, with tokens after the text only, pad not 0."""
    tokens = ["<eos>", *SHUFFLED, "<unk>", "<pad>", "<mask>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos> <pad>", special_tokens=[("<eos>", 0), ("<pad>", 27)]
    )
    names = {"pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        folder
    )


def structure_letters(folder: Path) -> None:
    """As ProstT5: residues that begin a word, lower-case structure letters, two prefixes."""
    model_type(folder, "t5")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("\u2581" + a, -3.0) for a in SHUFFLED]
    pieces += [("\u2581" + a.lower(), -4.0) for a in SHUFFLED[:20]] + [("A", -9.0)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=100)
    tokenizer.add_tokens(["<fold2AA>", "<AA2fold>"])
    tokenizer.save_pretrained(folder)


def joined_pieces(folder: Path) -> None:
    """BPE whose merges never cross a space, with Roberta's way of adding specials."""
    vocab = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", *SHUFFLED, "LA", "LAG"])}
    model = tokenizers.models.BPE(vocab, [("L", "A"), ("LA", "G")], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        folder
    )


def sentencepiece_of(kind: str, **options: Any) -> Callable[[Path], None]:
    """spiece.model alone, of type word, trained on residues with spaces as ProtTrans did."""

    def write(folder: Path) -> None:
        trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
        text = folder / "text"
        text.write_text("\n".join(" ".join(SHUFFLED[:n]) for n in range(1, 26)))
        prefix = str(folder / "spiece")
        trainer.train(
            input=str(text), model_prefix=prefix, model_type="word", minloglevel=2, **options
        )
        model_type(folder, kind)
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')

    write.__name__ = f"sentencepiece_{kind}"
    return write


FOLDERS = [
    bert_tokens,
    bert_resaved,
    word_level,
    structure_letters,
    joined_pieces,
    sentencepiece_of("t5", vocab_size=28, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    sentencepiece_of(
        "albert",
        vocab_size=30,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols="[CLS],[SEP],[MASK]",
    ),
    sentencepiece_of(
        "xlnet",
        vocab_size=32,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        control_symbols="<cls>,<sep>,<pad>,<mask>",
    ),
]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda write: write.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param(folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return read_vocabulary(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=30, deadline=None)
@given(sequence=st.text(SHUFFLED, min_size=1, max_size=40))
def test_ids_are_those_of_the_tokenizer(theirs: Any, vocabulary: Vocabulary, sequence: str) -> None:
    expected = theirs(" ".join(sequence))["input_ids"]
    assert vocabulary.encode(sequence).tolist() == expected


def test_roles_are_those_of_the_tokenizer(theirs: Any, vocabulary: Vocabulary) -> None:
    assert vocabulary.name.startswith("custom-") and vocabulary.size == len(theirs)
    assert vocabulary.pad_id == theirs.pad_token_id
    assert vocabulary.unk_id == theirs.unk_token_id
    mask = "<extra_id_0>" if "<extra_id_0>" in theirs.get_vocab() else theirs.mask_token
    assert vocabulary.mask_id == (None if mask is None else theirs.get_vocab()[mask])


def test_written_by_us_it_gives_the_same_ids(
    theirs: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    write_tokenizer(vocabulary, tmp_path, "keep")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path)
    sequence = "MKTLAGAYIAKQRZX"
    expected = vocabulary.encode(sequence).tolist()
    assert expected == theirs(" ".join(sequence))["input_ids"]
    for text in (sequence, " ".join(sequence), sequence.lower()):
        assert ours(text)["input_ids"] == expected
    assert len(ours) == vocabulary.size and ours.pad_token_id == vocabulary.pad_id
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    assert read_vocabulary(tmp_path) is vocabulary


def test_only_residues_are_written(vocabulary: Vocabulary) -> None:
    assert set(vocabulary.decode(vocabulary.residue_ids)) == set(RESIDUES)
    with pytest.raises(ProtlmError, match="normalise"):
        vocabulary.encode("LaG")


def word_level_json(folder: Path, tokens: list[str]) -> None:
    content = {
        "model": {
            "type": "WordLevel",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "unk_token": "[UNK]",
        }
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_letters_that_the_tokenizer_lacks_are_refused_clearly(tmp_path: Path) -> None:
    word_level_json(tmp_path, ["[UNK]", *SHUFFLED[:20]])
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.encode("MK").tolist() == [10, 12]
    assert vocabulary.mask_id is None and vocabulary.pad_id == vocabulary.unk_id == 0
    with pytest.raises(ProtlmError, match=r"position 2: 'X' has no id in custom-\w{8}; the model"):
        vocabulary.encode("MXK")
    word_level_json(tmp_path, ["[UNK]", *SHUFFLED[2:20]])
    with pytest.raises(ProtlmError, match=r"tokenizer.json: .*no token for the amino .*s\) W, Y"):
        read_vocabulary(tmp_path)
    word_level_json(tmp_path, SHUFFLED)
    with pytest.raises(ProtlmError, match=r"tokenizer.json: no unknown token"):
        read_vocabulary(tmp_path)


def test_pieces_of_several_residues_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    joined_pieces(tmp_path)
    vocabulary = read_vocabulary(tmp_path)
    assert "joins residues into 2 longer pieces (LA, LAG...)" in caplog.text
    assert vocabulary.encode("LAG", specials=False).size == 3


def test_ours_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(PROT_BERT.tokens) + "\n")
    assert read_vocabulary(tmp_path) is PROT_BERT
    # SentencePiece marks the start of a word; its vocabulary is a list of pieces and scores.
    pieces = [[t if t.startswith("<") else "\u2581" + t, 0.0] for t in PROT_T5.tokens[:28]]
    added = [{"id": i, "content": t} for i, t in enumerate(PROT_T5.tokens) if i >= 28]
    content = {"model": {"type": "Unigram", "vocab": pieces}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path) is PROT_T5


def test_damaged_or_absent_files(tmp_path: Path) -> None:
    with pytest.raises(
        ProtlmError, match=r"none of tokenizer.json, vocab.txt, .* and spiece.model"
    ):
        read_vocabulary(tmp_path)
    pytest.importorskip("sentencepiece")
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(ProtlmError, match=r"spiece.model is no SentencePiece model"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ProtlmError, match=r"tokenizer.json is not a tokenizer's file"):
        read_vocabulary(tmp_path)


def test_a_role_without_its_token_has_the_usual_one(tmp_path: Path) -> None:
    bert_tokens(tmp_path)
    file, mask_id = tmp_path / "special_tokens_map.json", read_vocabulary(tmp_path).mask_id
    for token in ("{}", '{"lstrip": false}', "null"):
        file.write_text(f'{{"mask_token": {token}}}')
        assert read_vocabulary(tmp_path).mask_id == mask_id == 0
    for token in ("[]", "5", '{"content": 5}'):
        file.write_text(f'{{"mask_token": {token}}}')
        with pytest.raises(ProtlmError, match="mask_token in special_tokens_map.json is .* text"):
            read_vocabulary(tmp_path)


def test_holes_among_the_ids_stay_holes(tmp_path: Path) -> None:
    tokens = ["[UNK]", *SHUFFLED]
    word_level_json(tmp_path, tokens)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = [{"id": 30, "content": "[MASK]"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    vocabulary = read_vocabulary(tmp_path)
    assert (vocabulary.size, vocabulary.mask_id) == (31, 30)
    assert np.array_equal(vocabulary.residue_ids, range(1, 26))
