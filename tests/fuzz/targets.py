"""All readers of files and texts that come from outside, each with valid inputs.

A target is a function from an empty folder to its `Case`. Adding a reader is adding a line to
`TARGETS`.
"""

from __future__ import annotations

import bz2
import contextlib
import copy
import dataclasses
import gzip
import io
import itertools
import json
import lzma
import os
import string
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from fuzz.harness import Case, Lost, Target
from zoo import ZOO, loaded

from protlm_jax import cli
from protlm_jax.config import files as config_files
from protlm_jax.config.files import read_config
from protlm_jax.config.recipes import load_recipe
from protlm_jax.data import blocks, fasta, prepared, token_files
from protlm_jax.evaluation import probe_data, verbs
from protlm_jax.evaluation.contacts.precision import read_contacts
from protlm_jax.evaluation.embedding import files as embedding_files
from protlm_jax.evaluation.embedding.spec import EmbeddingSpec
from protlm_jax.evaluation.parts import Parts
from protlm_jax.evaluation.probe_data import benchmarks
from protlm_jax.evaluation.probe_data.base import Target as Label
from protlm_jax.evaluation.probes import saved, trained
from protlm_jax.evaluation.probes.moments import Standard
from protlm_jax.evaluation.scoring import mutations, proteingym, table
from protlm_jax.huggingface import (
    load,
    read_architecture,
    read_tokenizer,
    save,
    tensor_files,
    tokenizers,
)
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.storage import digests, json_files
from protlm_jax.storage.parts import SETTINGS
from protlm_jax.t5x_bridge.checkpoints import described
from protlm_jax.training import checkpoints, hosts, metrics, phases
from protlm_jax.vocabularies import VOCABULARIES, get_vocabulary
from protlm_jax.vocabularies.files import custom_vocabulary, read_vocabulary_file

_gzip = partial(gzip.compress, mtime=0)  # the same bytes on another day
_MADE = {"format": embedding_files.FORMAT, "model": "x"}  # settings of an embedding

TINY = "configs/tiny.py:bert"

FASTA = [
    b">a first\nMKVLAAGG\nIVGL\n>b\nmkxuzob\n\n>sp|P1|X_HUMAN P OS=Homo sapiens OX=9606\nMKV\n",
    b"\xef\xbb\xbf>UniRef50_Q9 B n=2 Tax=Bacillus TaxID=55087 RepID=A_B\r\nMKV\r\n>c\r\nA\r\n",
]
FASTA_WORDS = (b">", b">a\n", b">\n", b"\n>b x\n", b" >c\n", b"MKV1", b"*", b"-", b"U", b"J")
TABLE = [
    b"id,sequence,split,kind,kcat/Km:number\na,MKVLA,train,x,1.5\nb,AAGG,test,y,2e3\n"
    b'c,GGG,valid,"x",2\nd,MKVA,train,y,3\ne,LLLL,train,x,4\n',
    b"id\tsequence\tkind\n"
    + b"".join(b"p%d\tMKV%s\t%d\n" % (i, b"A" * i, i % 2) for i in range(60)),
]
TABLE_WORDS = (b"id", b"sequence", b"split", b"train", b"test", b":number", b":class", b'"', b'""')
STABILITY = b"seq,label\nMKVLA,0.5\nAAGG,-1.25\n"
ANNOTATED = [
    b">a SET=train TARGET=x\nMKVLA\n>b SET=test TARGET=y\nAAGG\n>c SET=train VALIDATION=True "
    b"TARGET=x\nGGG\n>d SET=train TARGET=y\nMMM\n",
    b">a SET=train TARGET=2.73;999.0;;1e3;-1 MASK=11101\nMKVLA\n>b SET=test TARGET=1;2;NA;?\nAAGG\n"
    b">c SET=train VALIDATION=True TARGET=0.5,1,2\nGGG\n>d SET=train TARGET=1;2;\nMM\n",
]
VARIANTS = [
    b"mutant,sequence,DMS_score\nM1A,MKVLA,0.5\nK2G:L4V,MKVLA,1\nA5C,MKVLA,\n",
    b"mutant,mutated_sequence,DMS_score\nM1A,AKVLA,0.5\nM1A:K2G,AGVLA,-1\n",
]
REFERENCE = [  # the file that it names is there
    b"DMS_id,DMS_filename,target_seq,UniProt_ID,coarse_selection_type,taxon\n"
    b"A_1,DMS_substitutions.csv,MKVLA,PA,Activity,Human\nB_1,b.csv,MKVLA,PB,Binding,Virus\n"
]
MUTANTS = [b"A42G", b"A42G:L50P:K1M", b"p.Ala42Gly", b"WT", b"A42del", b"_wt"]
MUTANT_WORDS = (b":", b",", b"p.", b"Ala", b"ins", b"del", b"dup", b"*", b"_", b"1" * 50)
XML = [
    b'<?xml version="1.0" encoding="UTF-8"?>\n<UniRef50 xmlns="http://uniprot.org/uniref">\n'
    + b"".join(
        b'<entry id="UniRef50_%s" updated="2024"><name>Cluster: N</name><property type="member '
        b'count" value="1"/><representativeMember><dbReference type="UniProtKB ID" id="X_%s">'
        b'<property type="length" value="4"/></dbReference><sequence length="4">\nMKVL\n'
        b"</sequence></representativeMember></entry>\n" % (name, name)
        for name in (b"A", b"B", b"C")
    )
    + b"</UniRef50>\n"
]
XML_WORDS = (
    *(b'<?xml version="1.0" encoding="foo"?>', b'<?xml version="1.0" encoding="utf-7"?>'),
    *(b'<!DOCTYPE a [<!ENTITY x "AAAA">]>', b"&x;", b"&amp;", b"]]>", b"<![CDATA[", b"</entry>"),
    *(b"<entry id='z'>", b"<!--", b"-->", b"<sequence>", b"</sequence>", b"xmlns:a="),
)
OVERRIDES = [
    *(b"train.steps=7", b"schedule.learning_rate=1e-4", b"data.fasta=None", b"mesh.fsdp=2"),
    *(b"objective.rate=0.3", b"train.profile_steps=(1,2)", b"init_from=x", b"mesh=auto"),
    *(b"model.d_model=64", b"model.num_layers=2", b"data.length=64", b"optimizer.name=lamb"),
]
OVERRIDE_WORDS = (b".", b"=", b"{[]:1}", b"[]", b"{{}}", b"(", b"not", b"'", b"model.", b"train.")
OVERRIDE_WORDS += (b"objective.name", b"mesh.data", b"schedule.name", b"2j", b"b''", b"...", b"=[")
COMMANDS = [
    b"train\n--config\nconfigs/tiny.py\n--workdir\nx\n--config.train.steps=5",
    b"embed\n--model\nm\n--input\na.fasta\n--output\ne.h5\n--layers\nall",
    b"score\n--model\nm\n--input\na.csv\n--output\ns.csv",
    b"depth\n--model\nm\n--proteins\n5",
    b"prepare\n--dataset\nfasta\n--input\na.fasta\n--output\no\n--tokens",
    b"plan\n--config\nconfigs/tiny.py:bert\n--topology\nv4:2x2x2",
]
COMMAND_WORDS = (b"--", b"-h", b"--window", b"--seeds", b"--config.", b"--config.x=[", b"probe")


def _whole(path: Path) -> None:
    """FASTA by both readers: as many records as headers, used or reported."""
    read = list(fasta.read_every_record(path))
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"\n")
    blank = string.whitespace.encode()
    headers = sum(line.strip(blank).startswith(b">") for line in text.split(b"\n"))
    if len(read) != headers:
        raise Lost(f"{len(read)} records of {headers} headers")
    _in_blocks(path, headers)
    list(fasta.read_fasta(path))


def _in_blocks(path: Path, records: int | None = None) -> None:
    for size in (1, 64, 1 << 20):
        found = sum(len(list(blocks.entries(block))) for block in blocks.cut(str(path), size))
        if found != (found if records is None else records):
            raise Lost(f"{found} records of {records} in blocks of {size}")


def _uniref(path: Path) -> None:
    text = path.read_bytes()
    xml = text.lstrip(b"\xef\xbb\xbf" + string.whitespace.encode()).startswith(b"<")
    _in_blocks(path, text.count(b"</entry>") if xml else None)


def _variants(path: Path) -> None:
    read = table.read_variants(path)
    text = path.read_text("utf-8-sig", "replace")
    lines = sum(bool(line.strip().strip(" \t,;")) for line in io.StringIO(text))
    if '"' not in text and len(read.rows) < lines - 1:
        raise Lost(f"{len(read.rows)} rows of {lines - 1}")


def _table(path: Path) -> None:
    benchmark = probe_data.read_own(path)
    for split in benchmark.splits.values():
        split()


def _stability(folder: Path) -> Case:
    for part in ("train", "valid", "test"):
        (folder / f"stability.{part}.csv.gz").write_bytes(gzip.compress(STABILITY, mtime=0))

    def read() -> None:
        for value in vars(benchmarks).values():
            getattr(value, "cache_clear", lambda: None)()
        probe_data.load("stability", folder).splits["train"]()

    return Case(folder / "stability.train.csv.gz", [gzip.compress(STABILITY, mtime=0)], read)


def _plain(file: str, seeds: list[bytes], read: Callable[[Path], object], folder: Path) -> Case:
    """A file that needs nothing beside it."""
    return Case(folder / file, seeds, lambda: read(folder / file))


def _of_text(seeds: list[bytes], read: Callable[[str], object], folder: Path) -> Case:
    file = folder / "text"
    return Case(file, seeds, lambda: read(file.read_bytes().decode("utf-8", "surrogateescape")))


def _in_folder(file: str, write: Callable[[Path], object], read: Callable[[Path], object]) -> Any:
    """A file that `write` leaves in a folder, which `read` reads.

    JSON with a digest also goes without, as older versions wrote it: changes then get further.
    """

    def make(folder: Path) -> Case:
        write(folder)
        seeds = [(folder / file).read_bytes()]
        if b'"digest"' in seeds[0] and file.endswith(".json"):
            fields = json.loads(seeds[0])
            del fields["digest"]
            seeds += [json.dumps(fields).encode()] * 3
        return Case(folder / file, seeds, lambda: read(folder))

    return make


def _configs() -> dict[str, Any]:
    found = {
        name: config
        for specimen in ZOO.values()
        for name in EXCHANGES
        if (config := specimen.config).family == name
    }
    parts = ("electra_generator", "electra_discriminator")
    shrunk = ZOO["electra"].config.replace(generator_shrink=0)
    return found | {name: shrunk.replace(family=name) for name in parts if name in EXCHANGES}


def _write_folder(family: str, folder: Path) -> None:
    """A Hugging Face folder without weights."""
    folder.mkdir(exist_ok=True)
    config, exchange = _configs()[family], EXCHANGES[family]
    fields = {"architectures": [exchange.architecture], "model_type": exchange.model_type}
    (folder / "config.json").write_text(json.dumps(fields | exchange.to_config(config)))
    tokenizers.write_tokenizer(get_vocabulary(config.vocabulary), folder)


def _write_old_tokenizer(folder: Path) -> None:
    """As transformers 4 wrote them: vocab.txt, and the roles in other files."""
    _write_folder("bert", folder)
    (folder / "tokenizer.json").unlink()
    roles = {"unk_token": "[UNK]", "pad_token": {"content": "[PAD]", "lstrip": False}}
    roles |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    added = {"30": {"content": "[NEW]", "special": True}, "31": {"content": "[OLD]"}}
    told = {"do_lower_case": False, "added_tokens_decoder": added, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "added_tokens.json").write_text(json.dumps({"[NEW]": 30}))


def _write_adapter(folder: Path) -> None:
    """A LoRA adapter beside its base."""
    _write_folder("bert", folder / "base")
    fields = {"peft_type": "LORA", "base_model_name_or_path": "x", "r": 4, "lora_alpha": 8}
    more = {"task_type": "TOKEN_CLS", "rank_pattern": {"q": 4}, "modules_to_save": ["classifier"]}
    (folder / "adapter_config.json").write_text(json.dumps(fields | more))


def _tokenizer_json(folder: Path) -> Case:
    _write_folder("bert", folder)
    file = folder / "tokenizer.json"
    words = json.loads(file.read_text())
    pieces = [
        ["<unk>", 0.0],
        ["<pad>", 0.0],
        ["</s>", 0.0],
        *([f"\u2581{c}", -1.0] for c in "ACDEF"),
    ]
    pieces += [[f"\u2581{c}", -1.0] for c in "GHIKLMNPQRSTVWYX"]
    unigram = words | {"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}
    bert = {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
    several = {"type": "Sequence", "processors": [words["post_processor"], {"type": "ByteLevel"}]}
    seeds = [words, unigram, words | {"post_processor": bert}, words | {"post_processor": several}]
    texts = [json.dumps(seed).encode() for seed in seeds]
    return Case(file, texts, lambda: read_tokenizer.read_vocabulary(folder))


def _sentencepiece(folder: Path) -> Case:
    _write_folder("t5", folder)
    (folder / "tokenizer.json").unlink()

    def piece(text: str, kind: int) -> bytes:
        body = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\0\0\0\0\x18"
        return b"\x0a" + bytes([len(body) + 1]) + body + bytes([kind])

    ours = [piece("<pad>", 3), piece("</s>", 3), piece("<unk>", 2)]
    data = b"".join(ours + [piece("\u2581" + c, 1) for c in "ALGVSREDTIPKFQNYMHWCXBOUZ"])
    return Case(folder / "spiece.model", [data], lambda: read_tokenizer.read_vocabulary(folder))


def _open(folder: Path) -> None:
    with ExitStack() as stack:
        for tensor in tensor_files.open_tensors(folder, stack).values():
            tensor.read()


def _write_shards(folder: Path) -> None:
    from safetensors.numpy import save_file

    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({f"w{number}": np.ones((2, 3), np.float32)}, folder / name)
    names = {f"w{n}": f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)}
    index = {"metadata": {"total_size": 48}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_pickle(folder: Path) -> None:
    import torch

    torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4)}, folder / "pytorch_model.bin")


def _export(folder: Path) -> None:
    save.export(loaded("bert"), folder)


def _write_run(folder: Path) -> None:
    config = config_files.load_config(TINY, [])
    vocabulary = custom_vocabulary(
        get_vocabulary("prottrans").tokens[:-1] + ("[END]",)
        if "prottrans" in VOCABULARIES
        else ("[PAD]", "[UNK]", *"ACDEFGHIKLMNPQRSTVWYXBOUZ"),
        pad_id=0,
        unk_id=1,
        mask_id=None,
        prefix_ids=[],
        suffix_ids=[],
    )
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": 1}}\n' for n in (1, 2)))
    (folder / "checkpoints" / "5").mkdir(parents=True)


def _run_config(folder: Path) -> None:
    """All that read config.json; what one refuses the next one has to refuse or read."""
    refused = None
    for read in (read_config, load.read_architecture, verbs.data_of, verbs.rate_of):
        refused = _tried(lambda read=read: read(folder)) or refused
    refused = _tried(lambda: load.provenance(folder)) or refused
    if refused:
        raise refused


def _tried(read: Callable[[], object]) -> Exception | None:
    from protlm_jax.errors import ProtlmError

    try:
        read()
    except ProtlmError as error:
        return error
    return None


def _tree(folder: Path) -> Case:
    """A config file that returns the input, as plain values."""
    file, text = folder / "config.py", folder / "tree.json"
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n"
        f"def get_config():\n    return ConfigDict(json.load(open({str(text)!r})))\n"
    )
    plain = config_files.load_config(TINY, []).to_dict()
    first = {"name": "a", "config": {"train": {"steps": 3}}}
    second = first | {"name": "b", "optimizer": "keep", "schedule": "continue"}
    seeds = [json.dumps(t).encode() for t in (plain, plain | {"phases": [first, second]})]
    return Case(text, seeds, lambda: load_recipe(str(file), [], folder / "run", read_architecture))


def _override(text: str) -> None:
    tree = copy.deepcopy(_base())
    config_files.apply_override(tree, text)
    config_files.resolve(tree, TINY, architecture_of=read_architecture)


def _base(known: list[Any] = []) -> Any:  # noqa: B006
    if not known:
        known.append(config_files.read_tree(TINY))
    return known[0]


def _command(text: str) -> None:
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        cli._parser().parse_known_args(text.split("\n"))


def _write_prepared(folder: Path) -> None:
    from prepared_data import proteins, write_prepared

    write_prepared(folder, proteins([5, 9, 7, 30, 12, 8, 6, 11]), shards=1)


def _prepared(folder: Path) -> None:
    opened = prepared.Prepared.open(folder)
    _tried(opened.heldout_fasta)
    for split in ("train", "heldout"):
        for shard in token_files.open_token_shards(opened, split):
            list(shard.proteins())


def _shard(folder: Path) -> Case:
    _write_prepared(folder)
    file = next((folder / "tokens").glob("train*"))
    return Case(file, [file.read_bytes()], lambda: _prepared(folder))


SPEC = EmbeddingSpec((0, 1), ("residues", "mean"))


def _opened(folder: Path) -> Parts:
    settings, shape = {"model": "x", "layers": [0, 1]}, partial(SPEC.shape, width=4)
    return Parts.open(folder, settings, 3, SPEC.vectors, shape, SPEC.numpy_dtype)


def _write_parts(folder: Path) -> None:
    parts = _opened(folder)
    arrays = {"residues": np.ones((2, 5, 4), np.float32), "mean": np.ones((2, 4), np.float32)}
    parts.add(0, 5, arrays)
    parts.add(2, 5, arrays)
    parts.flush(whole=True)


def _parts(folder: Path) -> None:
    opened = _opened(folder)
    for record, vectors in itertools.product(range(3), SPEC.vectors):
        if opened.has(record):
            opened.read(record, vectors)


def _write_manifest(folder: Path) -> None:
    (folder / "e.h5").write_bytes(b"x")
    files = {"e.h5": {"content": [1, digests.digest_of(folder / "e.h5")]}}
    made = {"settings": _MADE, "records": 3, "files": files}
    (folder / "e.h5.json").write_text(json.dumps(made))


def _manifest(folder: Path) -> None:
    files = {folder / "e.h5": ("residues",)}
    embedding_files._finished(folder / "e.h5.json", files, _MADE)


def _write_probe(folder: Path) -> None:
    arrays = {"epochs": np.ones((1, 1), np.int32), "best_epoch": np.ones((1, 1), np.int32)}
    weights = {"q_kernel": np.ones((1, 1, 4, 2), np.float32), "q_bias": np.ones((1, 1, 2))}
    standard = Standard(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32))
    label = Label("q", "classes", ("a", "b"))
    heads = trained.TrainedHeads(
        *("linear", (label,), (0,), {"params": {"readout": weights}}, standard, {}),
        **arrays,
        valid={"q": np.ones((1, 1))},
    )
    place = folder / "probe" / "linear"
    place.mkdir(parents=True)
    saved.save_heads(heads, place)
    (place / "probe.json").write_text(json.dumps({"parameters": "x", "model": "m", "layers": [1]}))
    index = {"heads": {"linear": 1.0}, "best": "linear"}
    (folder / "probe" / saved._INDEX).write_text(json.dumps(index))


def _contacts(folder: Path) -> Case:
    seeds = []
    for kinds in (
        {"a": np.array([[0, 6], [1, 9]])},
        {"a": np.array([object()])},
        {"a": np.ones(3)},
    ):
        buffer = io.BytesIO()
        np.savez(buffer, **kinds)
        seeds.append(buffer.getvalue())
    return _plain("contacts.npz", seeds, read_contacts, folder)


def _results(folder: Path) -> Case:
    import xarray

    from protlm_jax.evaluation.results import read, save

    file = save(xarray.Dataset({"a": ("x", np.ones(4))}), folder / "results.nc")
    return Case(file, [file.read_bytes()], lambda: read(file))


def _write_seal(folder: Path) -> None:
    (folder / "a").write_bytes(b"abc")
    digests.seal(folder)


def _write_files(folder: Path) -> None:
    (folder / "a").write_bytes(b"abc")
    digests.seal(folder, checkpoints.FILES)


def _metrics(file: Path) -> None:
    _tried(lambda: metrics._length_until(file, 2))
    metrics.read_metrics(file)


def _phases(folder: Path) -> Case:
    plan = [dataclasses.make_dataclass("P", ["folder"])(folder / name) for name in ("1-a", "2-b")]
    data = json.dumps({"phases": [{"folder": "1-a", "steps": 3}, {"folder": "2-b"}]}).encode()
    return Case(folder / "phases.json", [data], lambda: phases._records(plan, folder))


def _write_t5x(folder: Path) -> None:
    config = ZOO["t5"].config
    vocabulary = get_vocabulary(config.vocabulary).to_dict()
    content = {"model": config.to_dict(), "vocabulary": vocabulary}
    (folder / "protlm_model.json").write_text(json.dumps(content))


def _state(path: Path) -> None:
    hosts.pick(path.read_bytes(), 1)


def _header(start: int, pad: int = 1) -> Any:
    """A JSON text behind its own length, at `start` of a file."""

    def decode(outer: bytes) -> bytes:
        size = int.from_bytes(outer[start : start + 8 if pad == 1 else start + 4], "little")
        begin = start + (8 if pad == 1 else 4)
        return outer[begin : begin + size]

    def encode(outer: bytes, inner: bytes) -> bytes:
        width = 8 if pad == 1 else 4
        inner += b" " * (-(start + width + len(inner)) % pad)
        rest = outer[start + width + len(decode(outer)) :]
        return outer[:start] + len(inner).to_bytes(width, "little") + inner + rest

    return decode, encode


def _packed(compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]) -> Any:
    return decompress, lambda _, inner: compress(inner)


PACKERS: dict[str, Any] = {
    "gz": (_gzip, gzip.decompress),
    "bz2": (bz2.compress, bz2.decompress),
    "xz": (lzma.compress, lzma.decompress),
    "zst": (zstandard.compress, zstandard.decompress),
}


def _fasta_packed(name: str) -> Target:
    compress = PACKERS[name][0]
    make = partial(_plain, f"a.fasta.{name}", [compress(f) for f in FASTA], _in_blocks)
    return Target(make, "text", FASTA_WORDS, _packed(*PACKERS[name]), share=0.5)


OLD = {"write": _write_old_tokenizer, "read": read_tokenizer.read_vocabulary}
PROBE = {"write": _write_probe, "read": saved.load}
LINES = [b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 2}\n']

TARGETS: dict[str, Target] = {
    "fasta": Target(partial(_plain, "a.fasta", FASTA, _whole), "text", FASTA_WORDS, share=2),
    **{f"fasta.{name}": _fasta_packed(name) for name in PACKERS},
    "uniref.xml": Target(partial(_plain, "a.xml", XML, _uniref), "text", XML_WORDS),
    "labels table": Target(partial(_plain, "a.csv", TABLE, _table), "text", TABLE_WORDS, share=2),
    "annotated fasta": Target(
        partial(_plain, "a.fasta", ANNOTATED, _table),
        "text",
        (*FASTA_WORDS, b"SET=", b"TARGET=", b"MASK=", b";999;", b"VALIDATION=True"),
    ),
    "stability table": Target(
        _stability, "text", TABLE_WORDS, _packed(_gzip, gzip.decompress), share=0.5
    ),
    "variants table": Target(
        partial(_plain, "v.csv", VARIANTS, _variants), "text", TABLE_WORDS + MUTANT_WORDS, share=2
    ),
    "ProteinGym's reference": Target(
        partial(
            *(_plain, "DMS_substitutions.csv", REFERENCE),
            lambda file: proteingym.read_reference(file.parent),
        ),
        "text",
        TABLE_WORDS,
    ),
    "mutant": Target(partial(_of_text, MUTANTS, mutations.parse_mutations), "text", MUTANT_WORDS),
    "override": Target(partial(_of_text, OVERRIDES, _override), "text", OVERRIDE_WORDS),
    "command line": Target(partial(_of_text, COMMANDS, _command), "text", COMMAND_WORDS, share=0.3),
    "config file": Target(_tree),
    "run config.json": Target(_in_folder("config.json", _write_run, _run_config), share=2),
    "vocabulary.json": Target(
        _in_folder(
            "vocabulary.json", _write_run, lambda f: read_vocabulary_file(f / "vocabulary.json")
        )
    ),
    "metrics.jsonl": Target(partial(_plain, "m.jsonl", LINES, _metrics), "text"),
    "phases.json": Target(_phases),
    "iterator state": Target(
        partial(_plain, "state", [hosts.join([b"a", b"b"])], _state),
        codec=_packed(zlib.compress, zlib.decompress),
    ),
    "checkpoint files.json": Target(
        _in_folder(checkpoints.FILES, _write_files, checkpoints._verify)
    ),
    "digests.json": Target(_in_folder(digests.SEAL, _write_seal, digests.verify)),
    "any JSON": Target(
        partial(_plain, "a.json", [b'{"a": [1, {"b": null}]}'], json_files.read_json)
    ),
    "T5X model.json": Target(_in_folder("protlm_model.json", _write_t5x, described), share=0.5),
    **{
        f"config.json of {name}": Target(
            _in_folder("config.json", partial(_write_folder, name), load.read_architecture),
            share=0.5,
        )
        for name in _configs()
    },
    "whole folder": Target(
        _in_folder("config.json", _export, load.load_model), share=0.02, slow=True
    ),
    "tokenizer.json": Target(_tokenizer_json, share=2),
    "tokenizer_config.json": Target(_in_folder("tokenizer_config.json", **OLD)),
    "special_tokens_map.json": Target(_in_folder("special_tokens_map.json", **OLD)),
    "added_tokens.json": Target(_in_folder("added_tokens.json", **OLD)),
    "adapter_config.json": Target(
        _in_folder("adapter_config.json", _write_adapter, load.read_architecture), share=0.5
    ),
    "vocab.txt": Target(_in_folder("vocab.txt", **OLD), "text"),
    "spiece.model": Target(_sentencepiece, "bytes"),
    "safetensors": Target(
        _in_folder("model.safetensors", _write_tensors, _open), codec=_header(0, 1)
    ),
    "safetensors index": Target(_in_folder("model.safetensors.index.json", _write_shards, _open)),
    "pytorch_model.bin": Target(
        _in_folder("pytorch_model.bin", _write_pickle, _open), "bytes", share=0.3, slow=True
    ),
    "prepared manifest": Target(_in_folder("manifest.json", _write_prepared, _prepared)),
    "token shard": Target(_shard, codec=_header(12, 64)),
    "embedding manifest": Target(_in_folder("e.h5.json", _write_manifest, _manifest)),
    "embedding settings": Target(_in_folder(SETTINGS, _write_parts, _parts)),
    "embedding part": Target(_in_folder("part-000000.json", _write_parts, _parts)),
    "probe index": Target(_in_folder(f"probe/{saved._INDEX}", **PROBE)),
    "probe.json": Target(_in_folder("probe/linear/probe.json", **PROBE)),
    "probe heads.json": Target(_in_folder("probe/linear/heads.json", **PROBE)),
    "probe heads.npz": Target(_in_folder("probe/linear/heads.npz", **PROBE), "bytes"),
    "contacts npz": Target(_contacts, "bytes"),
    "results": Target(_results, "bytes"),
}

os.environ.setdefault("HF_HUB_OFFLINE", "1")
