"""Batches: their form, what is in them, and exact continuation."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.data.batches import ResumableBatches
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.splits import heldout_records
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, PROT_T5, PROT_TXL, Vocabulary

TASKS = {"tokens": PROT_BERT, "prott5": PROT_T5, "span3": PROT_T5}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 proteins of 5 to 90 residues, spaced and gzipped."""
    rng = np.random.default_rng(3)
    text = ""
    for i, n in enumerate(rng.integers(5, 90, 120)):
        text += f">p{i}\n" + " ".join(rng.choice(list(AMINO_ACIDS), n)) + "\n"
    file = tmp_path_factory.mktemp("fasta") / "mine.fa.gz"
    file.write_bytes(gzip.compress(text.encode()))
    return str(file)


def batches(
    fasta: str | None, vocabulary: Vocabulary, task: str, split: str = "train", **options: object
) -> ResumableBatches:
    seed, batch_size = options.pop("seed", 0), options.pop("batch_size", 8)
    rows = options.pop("rows", None)
    config = DataConfig(fasta=fasta, task=task, **{"length": 48, "heldout_percent": 25} | options)
    how = {"seed": seed, "batch_size": batch_size, "rows": rows}
    return open_batches(config, vocabulary, split=split, **how)


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("task", ["span3", "ankh"])
def test_segments_of_span_corruption_are_pieces_of_one_protein(fasta, task):
    sequences = [r.sequence for r in heldout_records(DataConfig(fasta=fasta, heldout_percent=25))]
    found = []
    for batch in batches(fasta, PROT_T5, task, "heldout", length=32):
        for row in range(len(batch["encoder_segment_ids"])):
            for segment in range(1, batch["encoder_segment_ids"][row].max() + 1):
                inputs, targets = (
                    PROT_T5.decode(batch[name][row][batch[ids][row] == segment])
                    for name, ids in (
                        ("encoder_input_tokens", "encoder_segment_ids"),
                        ("decoder_target_tokens", "decoder_segment_ids"),
                    )
                )
                assert inputs.endswith("</s>") and targets.endswith("</s>")
                hidden = re.split(r"<extra_id_\d+>", targets.removesuffix("</s>"))[1:]
                for i, span in enumerate(hidden):
                    inputs = inputs.replace(f"<extra_id_{i}>", span)
                found.append(inputs.removesuffix("</s>"))
    room = {"span3": 34, "ankh": 31}[task]
    assert max(map(len, found)) <= room
    assert len(found) == sum(-(-len(s) // room) for s in sequences) > len(sequences)
    assert all(any(piece in s for s in sequences) for piece in found)
    assert sum(map(len, found)) == sum(map(len, sequences))


def test_held_out_batches_can_be_read_again(fasta):
    iterator = batches(fasta, PROT_BERT, "tokens", "heldout")
    start = iterator.state()
    once = list(iterator)
    iterator.restore(start)
    assert len(once) > 1 and all(map(equal, once, iterator))


def test_a_new_process_without_tensorflow_continues_exactly(fasta, tmp_path):
    iterators = {}
    for task, vocabulary in TASKS.items():
        iterators[task] = batches(fasta, vocabulary, task)
        for _ in range(11):
            next(iterators[task])
        (tmp_path / task).write_bytes(iterators[task].state())
    code = f"""
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets"):
    sys.modules[name] = None
import numpy as np
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.vocabularies import VOCABULARIES
for task in {list(iterators)}:
    config = DataConfig(fasta={fasta!r}, task=task, length=48, heldout_percent=25)
    vocabulary = VOCABULARIES["prot_bert" if task == "tokens" else "prot_t5"]
    batches = open_batches(config, vocabulary, split="train", seed=0, batch_size=8)
    batches.restore(open("{tmp_path}/" + task, "rb").read())
    for i in range(3):
        np.savez(f"{tmp_path}/{{task}}{{i}}.npz", **next(batches))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    for (task, iterator), i in itertools.product(iterators.items(), range(3)):
        with np.load(tmp_path / f"{task}{i}.npz") as saved:
            assert equal(next(iterator), dict(saved))


def test_a_state_of_another_split_is_refused(fasta):
    state = batches(fasta, PROT_BERT, "tokens").state()
    with pytest.raises(ProtlmError, match="cannot be continued exactly"):
        batches(fasta, PROT_BERT, "tokens", heldout_percent=5).restore(state)


def test_a_position_of_the_seqio_pipeline_restarts_the_data_with_a_warning(fasta):
    first, iterator = (batches(fasta, PROT_BERT, "tokens") for _ in range(2))
    saved = json.loads(zlib.decompress(iterator.state()))
    old = {"identity": saved["identity"], "files": {"state.index": "00"}}
    note = iterator.restore(zlib.compress(json.dumps(old).encode()))
    assert "begin at the start of an epoch" in note
    assert equal(next(iterator), next(first)) and iterator.restore(first.state()) is None


def test_the_digest_of_a_fasta_is_that_of_earlier_versions(fasta):
    """Streams of earlier checkpoints go on exactly."""
    state = batches(fasta, PROT_TXL, "stream").state()
    assert "'proteins': '3f102a043050a725'" in json.loads(zlib.decompress(state))["identity"]


def test_a_residue_without_an_id_names_its_record(tmp_path):
    file = tmp_path / "x.fa"
    file.write_text(">p0\nMK\n>p1\nT\n>p2\nLLX\n>p3\nX\n")
    bare = Vocabulary("bare", ("-", *AMINO_ACIDS), 0, 0, None, (), ())
    with pytest.raises(ProtlmError, match=r"record 'p2', position 3: 'X' has no id in bare"):
        batches(str(file), bare, "tokens", heldout_percent=0.0)


@pytest.mark.parametrize("pack", [True, False])
def test_three_proteins_are_enough(tmp_path, pack):
    file = tmp_path / "few.fa"
    file.write_text(">a\nMKTAYIAKQR\n>b\nGGSSGGW\n>c\nMAAAK\n")
    iterator = batches(str(file), PROT_BERT, "tokens", pack=pack, heldout_percent=0.0)
    counts = {"MKTAYIAKQR": 0, "GGSSGGW": 0, "MAAAK": 0}
    for batch in itertools.islice(iterator, 40):
        for protein in counts:
            text = "".join(map(PROT_BERT.decode, batch["input_tokens"]))
            counts[protein] += text.count(protein)
    assert max(counts.values()) < 1.5 * min(counts.values())
    assert iterator.counts.proteins == 3 and iterator.counts.longer == 0


def test_faults_of_the_user_are_named(tmp_path):
    with pytest.raises(ProtlmError, match="'prot_bert' has no sentinels"):
        batches(None, PROT_BERT, "span3")
    with pytest.raises(ProtlmError, match="prot_txl has no token that hides a residue"):
        batches(None, PROT_TXL, "prott5")
    with pytest.raises(ProtlmError, match=r"'span4'; choose one of .*prott5, span3, ankh"):
        batches(None, PROT_T5, "span4")
    with pytest.raises(ProtlmError, match="No such file"):
        batches(str(tmp_path / "none.fa"), PROT_BERT, "tokens")
    empty = tmp_path / "empty.fa"
    Path(empty).touch()
    with pytest.raises(ProtlmError, match="is empty"):
        batches(str(empty), PROT_BERT, "tokens")
