"""Importing this module registers SeqIO tasks for every dataset and objective, and mixtures.

    {uniref50,uniref90,uniref100,bfd,fasta,bundled}_{tokens,prott5,span3,ankh}
    bfd_uniref50_{tokens,prott5,span3,ankh}

Each has the splits "train" and "heldout". The `bundled` ones are the proteins of this package, the
split that of `DataConfig`. For the others data are looked for when a task is used:

    $PROTLM_DATA_DIR/uniref50     a folder that `protlm prepare --records --output` made
    $TFDS_DATA_DIR/uniref50       what a TFDS builder made: its only config and version

`tokens` are in ProtBert's alphabet and the others in ProtT5's; see `tasks.py` for what they hold,
and `packing.py` for the feature converters to read them with. Both splits are cropped and corrupted
as in training, since a task of SeqIO does not know its split; to score held-out proteins whole, let
`protlm train` or `protlm score` read them. SeqIO's offline caching stores ids of whole proteins,
before anything is cropped or hidden:

    seqio_cache_tasks --module_import=protlm_jax.data.seqio_tasks --tasks=uniref50_prott5 \\
        --output_cache_dir=gs://.../cache --pipeline_options=--runner=DataflowRunner,...

The mixtures draw from BFD and UniRef50 in the shares in which ProtT5-XL saw them, one after the
other: 1.2 M steps of 4k proteins, and 991 k of 2k (its model cards).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from protlm_jax.data.bundled_source import ConfigSource
from protlm_jax.data.config import DataConfig
from protlm_jax.data.prepared import MANIFEST, Prepared
from protlm_jax.data.record_source import RecordSource
from protlm_jax.data.runtime import seqio, tfds
from protlm_jax.data.tasks import encode, make_task, steps
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import PROT_BERT, PROT_T5

DATASETS = ("uniref50", "uniref90", "uniref100", "bfd", "fasta")
KINDS = {"tokens": PROT_BERT, "prott5": PROT_T5, "span3": PROT_T5, "ankh": PROT_T5}
RATES = {"bfd": 1.2 * 4, "uniref50": 0.991 * 2}

_INFO = "dataset_info.json"


def find_records(dataset: str) -> Path:
    """The TFDS folder of a dataset, where the environment says that data are.

    Raises:
      ProtlmError: neither variable is set, there is no such dataset, or there are several.
    """
    ours, theirs = os.environ.get("PROTLM_DATA_DIR"), os.environ.get("TFDS_DATA_DIR")
    if ours and (folder := Path(ours, dataset, "records")).joinpath(_INFO).exists():
        return folder
    found = sorted(Path(theirs, dataset).glob(f"*/*/{_INFO}")) if theirs else []
    if len(found) == 1:
        return found[0].parent
    if found:
        names = ", ".join(str(file.parent) for file in found)
        raise ProtlmError(
            f"several versions of {dataset} are in TFDS_DATA_DIR ({names}); leave one of them "
            "there, or put a prepared folder into PROTLM_DATA_DIR"
        )
    raise ProtlmError(
        f"no records of {dataset} are in PROTLM_DATA_DIR ({ours or 'not set'}) or TFDS_DATA_DIR "
        f"({theirs or 'not set'}); run protlm prepare --dataset {dataset} --records --output "
        f"$PROTLM_DATA_DIR/{dataset}"
    )


def record_files(dataset: str, split: str) -> Sequence[str]:
    """Paths of the shards of a split, in order, without empty ones; none where it has no records.

    Raises:
      ProtlmError: see `find_records`.
    """
    return _record_files(str(find_records(dataset)), split)


@functools.lru_cache
def _record_files(folder: str, split: str) -> Sequence[str]:
    # Our own manifest, where it is there, is checked when it is read; TFDS's files are not.
    for ours in (Path(folder).parent, Path(folder)):
        if (ours / MANIFEST).exists():
            prepared = Prepared.open(ours)
            shards = prepared.splits[split].records if split in prepared.splits else ()
            return tuple(os.fspath(prepared.require(shard)) for shard in shards if shard.proteins)
    splits = tfds.builder_from_directory(folder).info.splits
    if split not in splits:
        return ()
    sizes = zip(splits[split].filepaths, splits[split].shard_lengths, strict=True)
    return tuple(os.fspath(path) for path, proteins in sizes if proteins)


def _register() -> None:
    for dataset in DATASETS:
        source = RecordSource(functools.partial(record_files, dataset), ("train", "heldout"))
        for kind, vocabulary in KINDS.items():
            preprocessors = [
                encode(vocabulary.letter_table),
                seqio.CacheDatasetPlaceholder(),
                *steps(kind, vocabulary, "train"),
            ]
            name = f"{dataset}_{kind}"
            task = make_task(
                name, source, kind, vocabulary, preprocessors, seqio.SHUFFLE_BUFFER_SIZE
            )
            seqio.TaskRegistry.add_provider(name, task)
    for kind, vocabulary in KINDS.items():
        bundled = ConfigSource(DataConfig(), vocabulary)
        name = f"bundled_{kind}"
        task = make_task(name, bundled, kind, vocabulary, steps(kind, vocabulary, "train"))
        seqio.TaskRegistry.add_provider(name, task)
        rates = [(f"{dataset}_{kind}", rate) for dataset, rate in RATES.items()]
        seqio.MixtureRegistry.add(f"{'_'.join(RATES)}_{kind}", rates)


_register()
