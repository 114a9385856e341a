"""The TFDS builders `uniref50`, `uniref90`, `uniref100`, `bfd` and `fasta`, on Apache Beam.

Importing this module registers them with TensorFlow Datasets:

    tfds build uniref50 --imports protlm_jax.data.builders.datasets \\
        --config '{"name": "2024_01", "release": "2024_01", "files": ["uniref50.fasta.gz"]}'

    config = ProteinConfig(name="2024_01", release="2024_01", files=["gs://.../uniref50.fasta.gz"])
    builder = tfds.builder("uniref50", config=config, data_dir="gs://.../tfds")
    options = beam.options.pipeline_options.PipelineOptions(runner="DataflowRunner", ...)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_options=options))

Without options Beam's own runner works on this machine, with all data in memory; there,
`protlm prepare --records` makes a TFDS folder of the same proteins with flat memory. TFDS decides
on shards and order (by its own hash). Beside the shards are `manifest.json` and, for
`--heldout_from`, `heldout.fasta`. `tfds.builder_from_directory(folder)` reads the result without
this package.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from etils import epath

from protlm_jax.data.prepare import manifest
from protlm_jax.data.prepare.beam import (
    beam,
    judged,
    load_counted,
    plain_errors,
    rows_of,
    save_counted,
)
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rows import Row, heldout_fasta, split
from protlm_jax.data.prepare.rules import SIDES, SelectionRules
from protlm_jax.data.prepare.shards import join_heldout
from protlm_jax.data.prepared import HELDOUT, MANIFEST, WORK
from protlm_jax.data.records import NUMBERS, TEXTS, described, features, version_of
from protlm_jax.data.runtime import tfds


@dataclasses.dataclass
class ProteinConfig(tfds.core.BuilderConfig):
    """Which files, and which of their proteins.

    Attributes:
        name: part of the folder's name, beside the version, such as "2024_01".
        release: of the input, such as "2024_01"; the version follows from it (2024.1.0).
        files: FASTA or UniRef XML, in this order; none for all files of `manual_dir`.
        rules: fields of `SelectionRules`, as a mapping, which TFDS's command line can give.
    """

    version: Any = None
    release: str = ""
    files: Sequence[str] = ()
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.version = self.version or version_of(self.release)


class ProteinBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Proteins as TFDS stores them; a subclass gives the dataset its name."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [ProteinConfig(name="manual", description="files of manual_dir")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the files of one release, and no others, there."

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(), description=type(self).__doc__)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Generates the shards, and writes the manifest (not for `max_examples_per_split`)."""
        if not (download_config.beam_runner or download_config.beam_options):
            download_config = download_config.replace(beam_runner="DirectRunner")
        files = [os.fspath(path) for path in self.builder_config.files]
        files = files or sorted(os.fspath(path) for path in dl_manager.manual_dir.iterdir())
        rules = SelectionRules(**self.builder_config.rules, release=self.builder_config.release)
        self._plan = PreparePlan.make(self.name, files, Path(self.name), rules)
        self._work = f"{self.data_dir}/{WORK}"
        with plain_errors():
            super()._download_and_prepare(dl_manager, download_config)
        if download_config.max_examples_per_split is None:
            self._write_manifest()
        epath.Path(self._work).rmtree()

    def _split_generators(self, dl_manager: Any, pipeline: Any) -> dict[str, Any]:
        """The (key, example) pairs of each side that the rules do not leave empty."""
        buckets, judged_counts, sources = judged(pipeline, self._plan)
        rules = self._plan.rules
        made = (
            buckets
            | "split" >> beam.FlatMap(_examples, rules.deduplicate, self._work).with_outputs()
        )
        counts = (judged_counts, made.counts) | "all counts" >> beam.Flatten()
        save_counted(counts, sources, self._work)
        nothing_out = rules.heldout_from is None and not rules.heldout_percent
        return {side: made[side] for side in (SIDES[:1] if nothing_out else SIDES)}

    def _generate_examples(self) -> Iterator[Any]:
        raise NotImplementedError  # the splits come from a pipeline

    def _write_manifest(self) -> None:
        """Writes manifest.json and heldout.fasta beside the shards that TFDS wrote."""
        folder = epath.Path(self.data_dir)
        pieces = (_piece(self._work, bucket).read_bytes() for bucket in range(self._plan.buckets))
        with (folder / HELDOUT).open("wb") as file:
            heldout = join_heldout(pieces, file)
        if heldout["file"] is None:
            (folder / HELDOUT).unlink()
        with ThreadPoolExecutor(8) as threads:
            records = {
                side: list(
                    threads.map(_describe, map(folder.__truediv__, of.filenames), of.shard_lengths)
                )
                for side, of in self.info.splits.items()
            }
        counts, sources = load_counted(self._work)
        content = manifest.build(
            self._plan, counts, sources=sources, tokens={}, records=records, heldout=heldout
        )
        (folder / MANIFEST).write_text(manifest.to_text(content))


def _piece(work: str, bucket: int) -> Any:
    return epath.Path(work) / "heldout" / f"{bucket:05d}.fasta"


def _examples(element: tuple[int, Iterable[bytes]], deduplicate: bool, work: str) -> Iterator[Any]:
    """Examples of a bucket and their counts; its held-out proteins go to a file."""
    bucket, parts = element
    kept, counts = split(rows_of(parts), deduplicate)
    piece = _piece(work, bucket)
    piece.parent.mkdir(parents=True, exist_ok=True)
    piece.write_text(heldout_fasta(kept))
    yield beam.pvalue.TaggedOutput("counts", counts)
    for row in kept:
        yield beam.pvalue.TaggedOutput(row.side, _keyed(row))


def _keyed(row: Row) -> tuple[str, dict[str, Any]]:
    """The example of a row, and a key that no other row has."""
    source, line = row.position
    values = {name: getattr(row, name) for name in (*TEXTS, *NUMBERS)}
    return f"{row.key.hex()}/{source}/{line}", values


def _describe(path: Any, proteins: int) -> dict[str, Any]:
    """The manifest's entry of a shard."""
    with path.open("rb") as file:
        return {"file": path.name} | described(file, proteins)


class Uniref50(ProteinBuilder):
    """UniRef50: one protein for each cluster of UniProt at 50 % identity (FASTA or XML)."""


class Uniref90(ProteinBuilder):
    """UniRef90: one protein for each cluster of UniProt at 90 % identity (FASTA or XML)."""


class Uniref100(ProteinBuilder):
    """UniRef100: every sequence of UniProt once (FASTA or XML)."""


class Bfd(ProteinBuilder):
    """BFD: metagenomic and UniProt proteins in clusters (Steinegger et al. 2019), as FASTA."""


class Fasta(ProteinBuilder):
    """The proteins of any FASTA files."""
