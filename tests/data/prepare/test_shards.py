"""Records are what TensorFlow Datasets reads, with every field of an entry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.rows import Row
from protlm_jax.data.records import to_example, write_record_shard
from protlm_jax.errors import ProtlmError

ENTRY = ReleaseEntry(
    "UniRef90_P1", "MKVX", "Protein é", 7, "Homo sapiens", 9606, "P1_HUMAN", "UniRef50_P2"
)


@pytest.fixture(scope="module")
def tfds():
    from protlm_jax.data.runtime import tf  # noqa: F401  (quietly)

    return pytest.importorskip("tensorflow_datasets")


def test_every_field_comes_back(tfds):
    from protlm_jax.data.records import features

    found = features().deserialize_example_np(to_example(Row.of(ENTRY, "train", (0, 1))))
    texts = {k: v.decode() for k, v in found.items() if isinstance(v, bytes)}
    numbers = {k: int(v) for k, v in found.items() if not isinstance(v, bytes)}
    assert texts | numbers == {
        "id": "UniRef90_P1",
        "sequence": "MKVX",
        "description": "Protein é",
        "members": 7,
        "taxon": "Homo sapiens",
        "taxon_id": 9606,
        "representative": "P1_HUMAN",
        "uniref50": "UniRef50_P2",
    }


def test_tfds_reads_the_folder_in_the_order_of_the_token_files(tfds, plan):
    """Of 64 shards with a handful of held-out proteins some are empty, which TFDS must bear."""
    rules = replace(plan.rules, heldout_percent=3.0)
    many = replace(plan, records=True, buckets=64, rules=rules, release="2024_01")
    prepared = prepare(many, workers=1)
    builder = tfds.builder_from_directory(prepared.folder / "records")
    assert str(builder.version) == "2024.1.0"
    options = tfds.ReadConfig(interleave_cycle_length=1)
    for name, split in prepared.splits.items():
        assert builder.info.splits[name].num_examples == split.proteins
        assert [shard.proteins for shard in split.records] == [s.proteins for s in split.tokens]
        read = builder.as_dataset(split=name, read_config=options, shuffle_files=False)
        sequences = [example["sequence"].decode() for example in tfds.as_numpy(read)]
        assert sum(map(len, sequences)) == split.residues and len(sequences) == split.proteins
        if name == "heldout":
            assert any(shard.proteins == 0 for shard in split.records)
            fasta = prepared.heldout_fasta().read_text().split("\n")
            assert sequences == fasta[1::2]


def test_a_shard_that_cannot_be_written_names_itself(tfds, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ProtlmError, match=r"cannot write .*/x: .*"):
        write_record_shard(tmp_path / "x", [Row.of(ENTRY, "train", (0, 1))])


@pytest.mark.parametrize(
    ("release", "version"),
    [("2024_01", "2024.1.0"), ("", "1.0.0"), ("v3", "3.0.0"), ("1.2.3.4", "1.2.3")],
)
def test_releases_are_versions_of_tfds(release, version):
    from protlm_jax.data.records import version_of

    assert version_of(release) == version
