"""Importing this module registers SeqIO tasks for every dataset and objective, and mixtures.

    {uniref50,uniref90,uniref100,bfd,fasta,bundled}_{tokens,prott5,span3,ankh}
    bfd_uniref50_{tokens,prott5,span3,ankh}

Each has the splits "train" and "heldout". The `bundled` ones are the proteins of this package,
split as by `DataConfig`. The others look for their data when a task is used:

    $PROTLM_DATA_DIR/uniref50     a folder that `protlm prepare --records --output` made
    $TFDS_DATA_DIR/uniref50       what a TFDS builder made: its only config and version

`tokens` are in ProtBert's vocabulary and the others in ProtT5's. A task crops a protein that is
longer than the row to a random piece, corrupts it as native training does (`token_rows.py`), and
adds the specials; `seqio_features.py` packs the examples. A task of SeqIO does not know its split,
so both splits are cropped and corrupted; `protlm train` and `protlm score` score held-out proteins
whole. SeqIO's offline caching stores ids of whole proteins, before cropping and corruption:

    seqio_cache_tasks --module_import=protlm_jax.data.seqio_tasks --tasks=uniref50_prott5 \\
        --output_cache_dir=gs://.../cache --pipeline_options=--runner=DataflowRunner,...

The mixtures draw from BFD and UniRef50 in the shares in which ProtT5-XL saw them, one after the
other: 1.2 M steps of 4k proteins, and 991 k of 2k (its model cards).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from protlm_jax.data import orders, token_rows
from protlm_jax.data.config import DataConfig
from protlm_jax.data.prepared import MANIFEST, Prepared
from protlm_jax.data.records import RecordSource
from protlm_jax.data.runtime import numpy_function, seqio, tf, tfds
from protlm_jax.data.seqio_features import SeqioVocabulary
from protlm_jax.data.splits import Split, load_records
from protlm_jax.data.token_rows import (
    SPAN_TASKS,
    Alphabet,
    Layout,
    residues_per_row,
    spread,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import PROT_BERT, PROT_T5, RESIDUES, Vocabulary

DATASETS = ("uniref50", "uniref90", "uniref100", "bfd", "fasta")
KINDS = {"tokens": PROT_BERT, "prott5": PROT_T5, "span3": PROT_T5, "ankh": PROT_T5}
RATES = {"bfd": 1.2 * 4, "uniref50": 0.991 * 2}
SPLITS = ("train", "heldout")

_INFO = "dataset_info.json"
_NOTHING = -1
_TOGETHER = 256  # proteins that one call of Python corrupts

Example = dict[str, tf.Tensor]


def find_records(dataset: str) -> Path:
    """The TFDS folder of a dataset; raises ProtlmError where there is none, or several."""
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
    """Paths of the shards of a split that are not empty, in order."""
    return _record_files(str(find_records(dataset)), split)


@functools.lru_cache
def _record_files(folder: str, split: str) -> Sequence[str]:
    # Our own manifest is checked when it is read; TFDS's files are not.
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


def bundled_source(config: DataConfig = DataConfig()) -> seqio.FunctionDataSource:
    """The proteins of a config (by default the bundled ones), read when a split is used."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        sequences = [record.sequence for record in load_records(config, cast("Split", split))]
        return tf.data.Dataset.from_tensor_slices({"sequence": sequences})

    return seqio.FunctionDataSource(dataset, splits=SPLITS, caching_permitted=False)


def encode(example: Example, table: np.ndarray) -> Example:
    """Preprocessor: from {"sequence": letters} to {"targets": int32 [residues]}.

    A letter without an id (-1 in `table`, int32 [256]) fails with InvalidArgumentError.
    """
    codes = tf.cast(tf.io.decode_raw(example["sequence"], tf.uint8), tf.int32)
    ids = tf.gather(tf.constant(table), codes)
    check = tf.debugging.assert_non_negative(ids, "a residue that the vocabulary does not have")
    with tf.control_dependencies([] if check is None else [check]):
        return {"targets": tf.identity(ids)}


def features_of(kind: str) -> tuple[str, ...]:
    """The features of a task's examples: "targets", and "inputs" for an encoder-decoder."""
    return ("targets",) if kind == "tokens" else ("inputs", "targets")


def corrupt(kind: str, vocabulary: Vocabulary) -> Callable[..., tf.data.Dataset]:
    """Preprocessor from {"targets": ids of a whole protein} to the examples of a task."""
    names = features_of(kind)

    @seqio.map_over_dataset(num_seeds=1)
    def seeded(example: Example, seed: Sequence[tf.Tensor]) -> Example:
        return {"targets": example["targets"], "seed": tf.cast(tf.stack(seed), tf.int32)}

    def corrupted(ds: tf.data.Dataset, sequence_length: Mapping[str, int]) -> tf.data.Dataset:
        sides = [sequence_length[name] for name in (names[0], names[-1])]
        room = residues_per_row(kind, vocabulary, *sides)

        def examples(batch: Example) -> Example:
            made = numpy_function(
                lambda ids, seeds: examples_of(kind, vocabulary, ids, seeds, room),
                [batch["targets"], batch["seed"]],
                [tf.int32, tf.int32] * len(names),
            )
            for rows, sizes in zip(made[::2], made[1::2], strict=True):
                rows.set_shape([None, None]), sizes.set_shape([None])
            return {name: (made[2 * i], made[2 * i + 1]) for i, name in enumerate(names)}

        shapes, padding = {"targets": [None], "seed": [2]}, {"targets": _NOTHING, "seed": 0}
        batches = seeded(ds).padded_batch(_TOGETHER, shapes, padding).map(examples)
        return batches.unbatch().map(
            lambda rows: {name: row[:size] for name, (row, size) in rows.items()}
        )

    return corrupted


def examples_of(
    kind: str, vocabulary: Vocabulary, ids: np.ndarray, seeds: np.ndarray, room: int
) -> list[np.ndarray]:
    """Examples of some proteins: for each feature rows, int32 [proteins, longest], and their sizes.

    Args:
      ids: int32 [proteins, length], -1 after the end of each protein.
      seeds: int32 [proteins, 2].
      room: residues that fit; of a longer protein a piece from a random place is taken.
    """
    alphabet, letter_of = _alphabet(vocabulary)
    keys = orders.keys_of(orders.keys_of(0, seeds[:, 0]), seeds[:, 1])
    noise_keys = orders.keys_of(keys, 1)
    whole = (ids != _NOTHING).sum(axis=1)
    sizes = np.minimum(whole, room)
    starts = orders.below(orders.keys_of(keys, 0), whole - sizes + 1)[:, None]
    columns = np.arange(ids.shape[1])
    inside = (columns >= starts) & (columns < starts + sizes[:, None])
    letters = letter_of[ids[inside]]
    sides = [(letters, sizes)]
    if kind == "prott5":
        rows = np.zeros(ids.shape, np.uint8)
        rows[inside] = letters
        noisy = token_rows.prott5_noise(rows, noise_keys, token_rows.RANDOM_SHARE)
        sides = [(noisy[inside], sizes), (letters, sizes)]
    elif kind in SPAN_TASKS:
        inputs, shown, targets, hidden = token_rows.span_noise(
            letters, sizes, noise_keys, SPAN_TASKS[kind]
        )
        sides = [(inputs, shown), (targets, hidden)]
    made: list[np.ndarray] = []
    for values, residues in sides:
        tokens = residues + vocabulary.num_specials
        layout = Layout(np.arange(len(ids)), tokens, len(ids), int(tokens.max()))
        flat, begin = layout.specials(alphabet)
        spread(values, begin, residues, flat)
        made += [alphabet.ids(flat.reshape(len(ids), -1)), tokens.astype(np.int32)]
    return made


@functools.lru_cache
def _alphabet(vocabulary: Vocabulary) -> tuple[Alphabet, np.ndarray]:
    """Ids of letters, and the letter of each id: uint8 [ids]."""
    letter_of = np.zeros(vocabulary.size, np.uint8)
    for letter in map(ord, RESIDUES):
        if (token := vocabulary.letter_table[letter]) >= 0:
            letter_of[token] = letter
    return Alphabet(vocabulary), letter_of


def make_task(name: str, source: seqio.DataSource, kind: str, vocabulary: Vocabulary) -> seqio.Task:
    """A SeqIO task of a kind over {"sequence": letters}, not registered.

    Raises:
      ProtlmError: the task needs sentinels, and the vocabulary has none.
    """
    if kind in SPAN_TASKS:
        token_rows.sentinel_count(vocabulary)
    table = vocabulary.letter_table
    cached = [seqio.CacheDatasetPlaceholder()] if source.caching_permitted else []
    return seqio.Task(
        name,
        source=source,
        preprocessors=[
            seqio.map_over_dataset(lambda example: encode(example, table)),
            *cached,
            corrupt(kind, vocabulary),
        ],
        output_features=dict.fromkeys(
            features_of(kind), seqio.Feature(SeqioVocabulary(vocabulary), add_eos=False)
        ),
    )


def _register() -> None:
    sources = {
        name: RecordSource(functools.partial(record_files, name), SPLITS) for name in DATASETS
    }
    for kind, vocabulary in KINDS.items():
        for dataset, source in (sources | {"bundled": bundled_source()}).items():
            name = f"{dataset}_{kind}"
            seqio.TaskRegistry.add_provider(name, make_task(name, source, kind, vocabulary))
        rates = [(f"{dataset}_{kind}", rate) for dataset, rate in RATES.items()]
        seqio.MixtureRegistry.add(f"{'_'.join(RATES)}_{kind}", rates)


_register()
