"""Estimates the cost of a plan by preparing a sample of its input: `protlm prepare --dry_run`.

The sample is the beginning of the first files, prepared in a temporary folder. The estimate is as
good as the beginning is like the rest: releases are usually sorted (UniRef by size of the cluster,
UniProt by organism), and duplicates far apart are not found.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from protlm_jax.data.blocks import cut
from protlm_jax.data.prepare.manifest import total
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.shards import finished_bucket, gather, read_tail, scatter

SAMPLED_FILES = 4
SAMPLED_BYTES = 2 << 20  # of the text of each


def to_text(plan: PreparePlan, workers: int) -> str:
    """The plan and its estimated cost as text; raises ProtlmError where the sample is at fault."""
    began = time.perf_counter()
    blocks = []
    for source in plan.sources[:SAMPLED_FILES]:
        with closing(cut(source.path, SAMPLED_BYTES)) as reader:
            blocks.append(next(reader))
    cutting = time.perf_counter() - began
    small = replace(plan, buckets=1)
    with tempfile.TemporaryDirectory(prefix="protlm-") as name:
        folder = Path(name)
        spills = [folder / str(i) for i in range(len(blocks))]
        if plan.records:
            from protlm_jax.data import records  # noqa: F401  (its import is not timed)
        began = time.perf_counter()
        for number, (path, block) in enumerate(zip(spills, blocks, strict=True)):
            scatter(block, number, small, path)
        scattered = time.perf_counter()
        gather(0, spills, small, folder)
        gathered = time.perf_counter()
        done = finished_bucket(folder, 0)
        assert done is not None
        counts = total([done["counts"], *(read_tail(path, small)[1] for path in spills)])
        spilled = sum(path.stat().st_size for path in spills)
    text = sum(source.text_bytes for source in plan.sources)
    factor = max(1.0, text / sum(len(block.data) for block in blocks))
    # The parent cuts while the workers parse; writing begins when all is parsed.
    seconds = max(cutting, (scattered - began) / workers) + (gathered - scattered) / workers
    sizes = {
        kind: factor * sum(shard["bytes"] for shard in done[kind].values())
        for kind in ("tokens", "records")
        if done[kind]
    }
    train, heldout = counts.splits["train"], counts.splits["heldout"]
    dropped = ", ".join(
        f"{reason} {_about(d.count * factor)}" for reason, d in counts.dropped.items() if d.count
    )
    free = shutil.disk_usage(next(p for p in plan.output.absolute().parents if p.exists())).free
    enough = free > sum(sizes.values()) + spilled * factor
    lines = {
        "dataset": f"{plan.dataset} {plan.release}".strip(),
        "input": f"{len(plan.sources)} file(s), {_bytes(sum(s.bytes for s in plan.sources))}, "
        f"{_bytes(text)} of text",
        "sample": f"{counts.read:,} records, one part in {factor:,.0f}; what follows is "
        "scaled up from it",
        "proteins": f"{_about(train.lengths.total() * factor)} to train on, "
        f"{_about(heldout.lengths.total() * factor)} held out",
        "residues": _about((train.letters.total() + heldout.letters.total()) * factor),
        "left out": dropped or "none in the sample",
        "shards": f"{plan.buckets} of each side and kind",
        "output": f"{plan.output}: "
        + ", ".join(f"{kind} {_bytes(size)}" for kind, size in sizes.items()),
        "meanwhile": f"{_bytes(spilled * factor)} more below {plan.output / '.work'}",
        "free disk": f"{_bytes(free)}{'' if enough else ': NOT ENOUGH'}",
        "time": f"{_duration(seconds * factor)} with {workers} worker(s) on this machine",
    }
    return "\n".join(f"{name:<10} {value}" for name, value in lines.items())


def _about(number: float) -> str:
    return f"about {float(f'{number:.3g}'):,.0f}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.3g} h"
