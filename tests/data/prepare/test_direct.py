"""What is prepared is what was in the files, the same whatever happened on the way."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import struct
from collections import Counter
from dataclasses import replace
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.cli import main
from protlm_jax.data.prepare import direct
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.prepared import Prepared
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.owner import Occupied, owned

from .conftest import contents, proteins, to_fasta


def read_tokens(path: Path) -> list[tuple[str, str]]:
    """Names and sequences of a token file, read by the words of its format."""
    data = path.read_bytes()
    magic, version, size = struct.unpack("<8sII", data[:16])
    assert (magic, version) == (b"PRTLMTOK", 1)
    n = json.loads(data[16 : 16 + size])["proteins"]
    at = 16 + size
    starts, names = np.frombuffer(data, "<i8", 2 * (n + 1), at).reshape(2, -1).tolist()
    letters = data[at + 16 * (n + 1) :].decode()
    text = letters[starts[-1] :]
    return [(text[names[i] : names[i + 1]], letters[starts[i] : starts[i + 1]]) for i in range(n)]


def expected(release, side: str) -> list[tuple[str, str]]:
    """The proteins of one side, from the rules in the documentation and nothing else."""
    first: dict[str, str] = {}
    for _, records in release:
        for name, sequence in records:
            if len(sequence) >= 8:
                first.setdefault(sequence, name)

    def held(sequence: str) -> bool:
        digest = blake2b(sequence.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < 0.2

    def key(sequence: str) -> bytes:
        return blake2b(sequence.encode(), digest_size=16, person=b"order").digest()

    kept = sorted((s for s in first if held(s) == (side == "heldout")), key=key)
    return [(first[sequence], sequence) for sequence in kept]


def test_shards_hold_the_kept_proteins_in_the_stated_order(plan, release):
    prepared = prepare(plan, workers=1)
    for side in ("train", "heldout"):
        found = [pair for path in prepared.token_files(side) for pair in read_tokens(path)]
        wanted = expected(release, side)
        assert found == wanted and len(wanted) > 100
        split = prepared.splits[side]
        assert len(split.tokens) == 4 and split.proteins == len(wanted)
        assert dict(split.lengths.tolist()) == Counter(len(s) for _, s in wanted)
        letters = Counter("".join(s for _, s in wanted))
        assert {k: v for k, v in split.residue_counts.items() if v} == letters
    assert sorted(contents(plan.output)) == sorted(
        ["heldout.fasta", "manifest.json"]
        + [s.file for split in prepared.splits.values() for s in split.tokens]
    )


def test_the_manifest_accounts_for_every_record(plan, release):
    told = prepare(plan, workers=1).manifest
    records = [record for _, both in release for record in both]
    short = [name for name, sequence in records if len(sequence) < 8]
    twins = [n for n, sequence in records if n.startswith("twin") and len(sequence) >= 8]
    assert told["read"] == len(records) == told["kept"] + len(short) + len(twins)
    assert told["dropped"]["too_short"] == {"count": len(short), "examples": short[:5]}
    assert told["dropped"]["duplicate"] == {"count": len(twins), "examples": twins[:5]}
    files = [Path(path).read_bytes() for path, _ in release]
    assert told["sources"] == [
        {"name": name, "bytes": len(data), "sha256": sha256(data).hexdigest()}
        for name, data in zip(["first.fasta", "second.fasta.gz"], files, strict=True)
    ]
    assert str(plan.output.parent) not in json.dumps(told)


def test_stopped_anywhere_it_ends_with_the_same_bytes(plan, tmp_path, monkeypatch):
    """Every file takes its name by os.replace: stop before or after any of them, several times."""
    prepare(plan, workers=1)
    again = replace(plan, output=tmp_path / "again")
    rng, real, stops = random.Random(0), os.replace, 0

    class Stop(BaseException):
        pass

    def sometimes(*paths):
        chance = rng.random()
        if chance < 0.2:
            raise Stop
        real(*paths)
        if chance < 0.4:
            raise Stop

    monkeypatch.setattr(os, "replace", sometimes)
    while not (again.output / "manifest.json").exists():
        try:
            prepare(again, workers=1)
        except Stop:
            stops += 1
    monkeypatch.undo()
    prepare(again, workers=1)
    assert stops >= 10 and contents(again.output) == contents(plan.output)


def test_what_is_done_is_not_done_again(plan, monkeypatch):
    calls = []
    for name in ("scatter", "gather"):
        real = getattr(direct, name)
        monkeypatch.setattr(direct, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    monkeypatch.setattr(direct, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, workers=1)
    assert calls.count("gather") == 4 and calls.count("scatter") > 5
    monkeypatch.undo()
    done = prepare(plan, workers=1)
    before = {p: p.stat().st_mtime_ns for p in plan.output.rglob("*")}
    assert prepare(plan, workers=1).digest == done.digest
    assert before == {p: p.stat().st_mtime_ns for p in plan.output.rglob("*")}


def stopped(plan: PreparePlan, monkeypatch, at: str) -> Path:
    """The work folder of a run that was stopped when it came to this step."""
    with monkeypatch.context() as patch:
        patch.setattr(direct, at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, workers=1)
    with pytest.raises(ProtlmError, match="not finished; run the same"):
        Prepared.open(plan.output)
    return plan.output / ".work"


def test_another_command_does_not_go_on_with_a_folder(plan, monkeypatch):
    other = replace(plan, rules=replace(plan.rules, max_length=50))
    stopped(plan, monkeypatch, "_gather_all")
    with pytest.raises(ProtlmError, match=r"another rules .*another --output"):
        prepare(other, workers=1)
    prepare(plan, workers=1)
    with pytest.raises(ProtlmError, match="another rules"):
        prepare(other, workers=1)
    with pytest.raises(ProtlmError, match="another release"):
        prepare(replace(plan, release="2"), workers=1)


def test_an_input_that_changed_meanwhile_is_noticed(tmp_path, plan, monkeypatch):
    path = tmp_path / "mine.fasta"
    path.write_bytes(to_fasta(proteins(5)))
    mine = replace(plan, sources=(replace(plan.sources[0], path=str(path)),))
    (stopped(mine, monkeypatch, "_gather_all") / "scattered").unlink()
    path.write_bytes(to_fasta(proteins(6)))
    with pytest.raises(ProtlmError, match=r"mine.fasta is not the file with which"):
        prepare(mine, workers=1)


def test_foreign_folders_and_other_processes_are_left_alone(plan):
    plan.output.mkdir()
    (plan.output / "thesis.tex").write_text("x")
    with pytest.raises(ProtlmError, match="holds something that protlm prepare did not write"):
        prepare(plan, workers=1)
    assert list(contents(plan.output)) == ["thesis.tex"]
    (plan.output / "thesis.tex").unlink()
    with owned(plan.output, inside=True), pytest.raises(Occupied, match="is being written by"):
        prepare(plan, workers=1)
    assert prepare(plan, workers=1).splits["train"].proteins


@pytest.mark.parametrize("after", [0, 3, 9, 12, 15])
def test_a_full_disk_says_so_and_later_it_goes_on(plan, tmp_path, monkeypatch, after):
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ProtlmError, match=r"cannot write .*No space left.*free some space"):
            prepare(plan, workers=1)
    assert not (plan.output / "manifest.json").exists()
    prepare(plan, workers=1)
    prepare(replace(plan, output=tmp_path / "fresh"), workers=1)
    assert contents(plan.output) == contents(tmp_path / "fresh")


@pytest.fixture
def gathered(plan, monkeypatch) -> Path:
    """The work folder of a run that was stopped before its end, with all that such a folder has."""
    return stopped(plan, monkeypatch, "finish")


def test_what_changed_in_an_unfinished_run_is_made_again_or_named(plan, tmp_path, gathered):
    """A bit flipped anywhere: the same command (twice, where it says so) gives the same bytes, or
    names what to remove."""
    prepare(replace(plan, output=tmp_path / "calm"), workers=1)
    calm, rng = contents(tmp_path / "calm"), random.Random(0)
    shutil.copytree(gathered, tmp_path / "kept")
    files = sorted(p.relative_to(gathered) for p in gathered.rglob("*") if p.is_file())
    for name in [Path("plan.json"), Path("scattered"), *rng.choices(files, k=10)]:
        data = bytearray((tmp_path / "kept" / name).read_bytes())
        shutil.rmtree(plan.output)
        shutil.copytree(tmp_path / "kept", gathered)
        if name.parts[0] == "spill":  # which is read for buckets that are not there yet
            shutil.rmtree(gathered / "gathered")
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (gathered / name).write_bytes(data)
        try:
            prepare(plan, workers=1)
        except ProtlmError as error:
            if name.name == "plan.json":
                assert "remove" in str(error)
                continue
            assert "run the same command again" in str(error)
            prepare(plan, workers=1)
        if name.parts[0] == "tokens":  # its content is compared where it is read
            with pytest.raises(Damaged, match=name.name):
                prepare(plan, workers=1)
        else:
            assert contents(plan.output) == calm, name


def test_a_work_folder_of_another_version_is_not_read(plan, gathered):
    """Version 1 had pickles in it, which are programs."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(plan.output / "trapped"),)

    told = json.loads((gathered / "plan.json").read_text())
    told.pop("digest")
    (gathered / "plan.json").write_text(json.dumps(told | {"layout": 1}))
    for path in gathered.glob("*/*"):
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ProtlmError, match=r"another version of protlm_jax.*remove .*\.work"):
        prepare(plan, workers=1)
    (gathered / "plan.json").write_text(json.dumps(told))
    with pytest.raises(ProtlmError, match="run the same command again"):
        prepare(plan, workers=1)
    prepare(plan, workers=1)
    assert not (plan.output / "trapped").exists()


def test_links_in_the_work_folder_are_not_followed(plan, gathered, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (gathered / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ProtlmError, match=r"lock is a link, which is not followed"):
        prepare(plan, workers=1)
    (gathered / "lock").unlink()
    prepare(plan, workers=1)
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_is_said_to_be_done_is_looked_at(plan, tmp_path):
    path = tmp_path / "mine.fasta"
    path.write_bytes(to_fasta(proteins(5)))
    source = replace(plan.sources[0], path=str(path), bytes=path.stat().st_size)
    mine = replace(plan, sources=(source,))
    made = prepare(mine, workers=1)
    # A process that has written the manifest may still be clearing up.
    with owned(mine.output, inside=True), pytest.raises(Occupied):
        prepare(mine, workers=1)
    for name in ("heldout.fasta", made.splits["train"].tokens[2].file):
        file = mine.output / name
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(Damaged, match=f"{file} is .*remove {mine.output} first"):
            prepare(mine, workers=1)
        file.unlink()
        with pytest.raises(Damaged, match=f"{file} is missing"):
            prepare(mine, workers=1)
        file.write_bytes(data)
    assert prepare(mine, workers=1).digest == made.digest
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ProtlmError, match=r"begun with another sha256 of mine.fasta"):
        prepare(mine, workers=1)


def test_nucleotides_are_counted_and_said(tmp_path, capsys):
    path = tmp_path / "dna.fa"
    path.write_text(
        ">g\nATGGCGTTAGCTAGC\n>r\naugaaauuugggccc\n>p\nMKTAYIAKQRGGGGG\n>short\nACGT\n"
        ">antifreeze\n" + "AATAATAAAATA" * 5 + "\n"
    )
    command = ["prepare", "--dataset", "fasta", "--input", str(path), "--tokens", "--workers", "1"]
    for _ in range(2):
        assert main([*command, "--heldout_percent", "0", "--output", str(tmp_path / "out")]) == 0
        assert "2 of 5 records have only the letters of nucleotides" in capsys.readouterr().err
    assert Prepared.open(tmp_path / "out").manifest["nucleotides"] == 2


def test_bad_records_stop_or_are_counted(tmp_path):
    path = tmp_path / "bad.fasta"
    path.write_bytes(b">a\nMKV\n>b\nMK1V\n>c\n>d\nMKVV\n")

    def asked(bad_records) -> PreparePlan:
        rules = SelectionRules(bad_records=bad_records, heldout_percent=0.0)
        return PreparePlan.make(
            "fasta", [str(path)], tmp_path / bad_records, rules, tokens=True, records=False
        )

    with pytest.raises(ProtlmError, match=r"bad.fasta, line 4: .*'b', position 3: '1'"):
        prepare(asked("error"), workers=1)
    prepared = prepare(asked("drop"), workers=1)
    assert prepared.manifest["dropped"] == {"bad_record": {"count": 2, "examples": ["b", "c"]}}
    names = [name for f in prepared.token_files("train") for name, _ in read_tokens(f)]
    assert sorted(names) == ["a", "d"]
    assert prepared.token_files("heldout") == [] and not (tmp_path / "drop/heldout.fasta").exists()


def test_a_shard_that_vanishes_on_the_way_is_missed(plan, gathered):
    (gathered / "tokens/train-00002-of-00004.tokens").unlink()
    with pytest.raises(ProtlmError, match=r"train-00002-of-00004.tokens .*has vanished"):
        prepare(plan, workers=1)


def test_duplicates_stay_where_they_are_wanted(plan, release):
    both = replace(plan, rules=replace(plan.rules, deduplicate=False))
    prepared = prepare(both, workers=1)
    found = [
        pair for s in prepared.splits for f in prepared.token_files(s) for pair in read_tokens(f)
    ]
    wanted = [pair for _, records in release for pair in records if len(pair[1]) >= 8]
    assert sorted(found) == sorted(wanted)


def test_a_file_of_another_dataset_is_refused(tmp_path):
    path = tmp_path / "u.fasta"
    path.write_bytes(b">UniRef50_A n=1 Tax=x TaxID=1 RepID=A\nMKV\n>UniRef90_B n=1\nMKVV\n")
    with pytest.raises(ProtlmError, match="which release of uniref50"):
        PreparePlan.make("uniref50", [str(path)], tmp_path / "o", SelectionRules())
    plan = PreparePlan.make(
        "uniref50", [str(path)], tmp_path / "o", SelectionRules(release="2024_01")
    )
    with pytest.raises(ProtlmError, match=r"u.fasta, line 3: 'UniRef90_B' is no entry of uniref50"):
        prepare(plan, workers=1)


def test_input_that_cannot_be_read_ends_the_run(plan, tmp_path):
    cut_short = tmp_path / "cut.fasta.gz"
    cut_short.write_bytes(Path(plan.sources[1].path).read_bytes()[:-100])
    broken = replace(plan, sources=(plan.sources[0], replace(plan.sources[1], path=str(cut_short))))
    with pytest.raises(ProtlmError, match=r"cut.fasta.gz is truncated"):
        prepare(broken, workers=1)
    assert not (plan.output / "manifest.json").exists()
    with pytest.raises(ProtlmError, match=r"given twice"):
        PreparePlan.make("fasta", [str(cut_short)] * 2, tmp_path, SelectionRules())
