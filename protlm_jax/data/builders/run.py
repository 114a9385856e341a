"""`protlm prepare --runner beam`: the folder that `protlm prepare` makes, by a Beam pipeline.

Workers write the shards themselves, each whole or not at all, below the output folder: so all of
them must see it under the same path (one machine, or a shared file system). Shards and manifest are
the same bytes as those of one machine without Beam. What Beam has read lies with Beam: after a kill
the next run begins again, and writes the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from protlm_jax.data.builders.graph import Sum, judged, options, plain_errors, rows_of
from protlm_jax.data.builders.notes import COUNTS, SOURCES, load, load_counts, save, save_counts
from protlm_jax.data.builders.runtime import beam
from protlm_jax.data.prepare.gather import write_bucket
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.pool import Pool
from protlm_jax.data.prepare.run import finish, finished, work_folder
from protlm_jax.data.prepared import MANIFEST, Prepared
from protlm_jax.storage.owner import owned


def prepare_with_beam(plan: Plan, flags: str = "") -> Prepared:
    """Makes the folder of a plan; returns at once where it is there already.

    Args:
        flags: Beam's command-line flags. Without any, one process of this machine does it;
            "--direct_num_workers=2 --direct_running_mode=multi_processing" takes two.
    Raises:
        ProtlmError: Beam is not installed, the input is at fault, the disk is full, no protein is
            left, or the folder holds something else.
        Occupied: another process works in the output folder.
    """
    with owned(plan.output, inside=True):
        if (plan.output / MANIFEST).exists():
            return finished(plan)
        with work_folder(plan) as work:
            counts, sources = f"{work}/{COUNTS}", f"{work}/{SOURCES}"
            with plain_errors(), beam.Pipeline(options=options(flags)) as pipeline:
                steps = judged(pipeline, plan)
                _ = steps.buckets | "write" >> beam.Map(_write, plan, work)
                _ = (
                    steps.counts
                    | beam.CombineGlobally(Sum())
                    | "counts" >> beam.Map(save_counts, counts)
                )
                _ = steps.sources | beam.combiners.ToList() | "hashes" >> beam.Map(save, sources)
            told = [one for _, one in sorted(load(sources), key=lambda pair: pair[0])]
            with Pool(1) as pool:
                finish(plan, work, pool, load_counts(counts), told)
    return Prepared.open(plan.output)


def _write(element: tuple[int, Iterable[bytes]], plan: Plan, work: Path) -> None:
    bucket, parts = element
    write_bucket(bucket, rows_of(parts), plan, work)
