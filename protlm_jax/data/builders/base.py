"""What the TFDS builders have in common: a release's files, judged by rules, as TFDS shards.

    config = ProteinConfig(name="2024_01", release="2024_01", files=["gs://.../uniref50.fasta.gz"])
    builder = tfds.builder("uniref50", config=config, data_dir="gs://.../tfds")
    options = beam.options.pipeline_options.PipelineOptions(runner="DataflowRunner", ...)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_options=options))

Where Beam options or a runner are given, Beam does all the work; otherwise this process does, with
flat memory, and with room on disk for the text of the input. Either way the proteins are those of
`protlm prepare` with the same rules, and TFDS decides on shards and order (by a hash of its own).
Beside the shards lie `manifest.json` and, for `--heldout_from`, `heldout.fasta`.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from protlm_jax.data.builders.notes import (
    COUNTS,
    SOURCES,
    save,
    save_counts,
    save_heldout,
    write_manifest,
)
from protlm_jax.data.prepare.gather import settle
from protlm_jax.data.prepare.manifest import Counts
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.pool import Pool
from protlm_jax.data.prepare.records import NUMBERS, TEXTS, features, version_of
from protlm_jax.data.prepare.rows import Row, from_bytes, to_bytes
from protlm_jax.data.prepare.rules import SIDES, Rules, Side
from protlm_jax.data.prepare.run import scatter_all
from protlm_jax.data.prepare.scatter import read_rows, read_tail
from protlm_jax.data.prepared import WORK
from protlm_jax.data.runtime import tfds

Example = tuple[str, dict[str, Any]]


@dataclasses.dataclass
class ProteinConfig(tfds.core.BuilderConfig):
    """Which files, and which of their proteins.

    Attributes:
        name: part of the folder's name, beside the version: "2024_01", or what sets it apart.
        release: of the input, such as "2024_01"; the version follows from it (2024.1.0).
        files: FASTA or UniRef XML, in this order; none for all files of `manual_dir`.
        rules: fields of `Rules`, as a mapping, so that the command line of TFDS can give them.
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
        """Generates the shards, and writes the manifest of all but a trial with fewer examples."""
        files = [os.fspath(path) for path in self.builder_config.files]
        files = files or sorted(os.fspath(path) for path in dl_manager.manual_dir.iterdir())
        rules = Rules(**self.builder_config.rules, release=self.builder_config.release)
        self._plan = Plan.make(self.name, files, Path(self.name), rules)
        self._work = f"{self.data_dir}/{WORK}"
        self._on_beam = bool(download_config.beam_runner or download_config.beam_options)
        with tempfile.TemporaryDirectory() as folder, _plain_errors(self._on_beam):
            self._folder = Path(folder)
            super()._download_and_prepare(dl_manager, download_config)
        if download_config.max_examples_per_split is None:
            shards = {
                side: list(zip(split.filenames, split.shard_lengths, strict=True))
                for side, split in self.info.splits.items()
            }
            write_manifest(self.data_dir, self._work, self._plan, shards)
        tfds.core.Path(self._work).rmtree()

    @property
    def _split_generators(self) -> Callable[..., dict[Side, Any]]:
        """TFDS makes a pipeline where this has an argument of that name."""
        return self._split_on_beam if self._on_beam else self._split_here

    def _split_here(self, dl_manager: Any) -> dict[Side, Iterator[Example]]:
        """Settles all buckets in this process, and keeps them on disk."""
        counts = Counts()
        with Pool(1) as pool:
            spills, sources = scatter_all(self._plan, self._folder, pool, progress=False)
        for path in spills:
            counts.add(read_tail(path, self._plan).counts)
        for bucket in range(self._plan.buckets):
            rows = [row for path in spills for row in read_rows(path, bucket)]
            kept, told = settle(rows, self._plan)
            counts.add(told)
            save_heldout(bucket, kept, self._work)
            (self._folder / f"{bucket:05d}").write_bytes(to_bytes(kept))
        save_counts(counts, f"{self._work}/{COUNTS}")
        save(sources, f"{self._work}/{SOURCES}")
        sides = [side for side in SIDES if counts.splits[side].lengths]
        return {side: self._generate_examples(side) for side in sides}

    def _generate_examples(self, side: Side) -> Iterator[Example]:
        for bucket in range(self._plan.buckets):
            for row in from_bytes((self._folder / f"{bucket:05d}").read_bytes()):
                if row.side == side:
                    yield keyed(row)

    def _split_on_beam(self, dl_manager: Any, pipeline: Any) -> dict[Side, Any]:
        """The same as PCollections of a pipeline."""
        from protlm_jax.data.builders.examples import examples

        return examples(pipeline, self._plan, self._work)


def _plain_errors(on_beam: bool) -> AbstractContextManager[None]:
    """Without Beam nothing stands around an error."""
    if not on_beam:
        return nullcontext()
    from protlm_jax.data.builders.graph import plain_errors

    return plain_errors()


def keyed(row: Row) -> Example:
    """The example of a row, and a key that no other row has."""
    source, line = row.position
    values = {name: getattr(row, name) for name in (*TEXTS, *NUMBERS)}
    return f"{row.key.hex()}/{source}/{line}", values
