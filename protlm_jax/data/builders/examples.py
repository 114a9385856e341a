"""The last steps of a TFDS builder on Beam: buckets -> examples of each side, counts, notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from protlm_jax.data.builders.base import keyed
from protlm_jax.data.builders.graph import Sum, judged, rows_of
from protlm_jax.data.builders.notes import COUNTS, SOURCES, save, save_counts, save_heldout
from protlm_jax.data.builders.runtime import beam
from protlm_jax.data.prepare.gather import settle
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.rules import SIDES, Side


def examples(pipeline: beam.Pipeline, plan: Plan, work: str) -> dict[Side, beam.PCollection]:
    """Adds all steps of a plan to a pipeline.

    Args:
        work: folder for `notes`.
    Returns:
        For each side that is not empty by the rules its (key, example) pairs.
    """
    steps = judged(pipeline, plan)
    settled = steps.buckets | "settle" >> beam.ParDo(_Settle(plan, work)).with_outputs()
    counts = (steps.counts, settled.counts) | "all counts" >> beam.Flatten()
    _ = (
        counts
        | beam.CombineGlobally(Sum())
        | "save counts" >> beam.Map(save_counts, f"{work}/{COUNTS}")
    )
    _ = (
        steps.sources
        | beam.combiners.ToList()
        | beam.Map(lambda pairs: [told for _, told in sorted(pairs, key=lambda pair: pair[0])])
        | "save sources" >> beam.Map(save, f"{work}/{SOURCES}")
    )
    nothing_out = plan.rules.heldout_from is None and not plan.rules.heldout_percent
    sides = SIDES[:1] if nothing_out else SIDES
    return {side: settled[side] for side in sides}


class _Settle(beam.DoFn):
    def __init__(self, plan: Plan, work: str) -> None:
        self._plan = plan
        self._work = work

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        bucket, parts = element
        kept, counts = settle(rows_of(parts), self._plan)
        save_heldout(bucket, kept, self._work)
        yield beam.pvalue.TaggedOutput("counts", counts)
        for row in kept:
            yield beam.pvalue.TaggedOutput(row.side, keyed(row))
