"""What a plan will take, from preparing a sample of its input: `protlm prepare --dry_run`.

The sample is the beginning of the first files, and goes through the very same steps in a temporary
folder. So the estimate is as good as the beginning is like the rest; releases are usually sorted
(UniRef by size of the cluster, UniProt by organism), and duplicates far apart are not seen at all.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from protlm_jax.data.blocks import Block, cut
from protlm_jax.data.prepare.gather import Gathered, gather
from protlm_jax.data.prepare.manifest import Counts
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.scatter import read_tail, scatter

SAMPLED_FILES = 4
SAMPLED_BYTES = 2 << 20  # of the text of each


@dataclass(frozen=True)
class Estimate:
    """What a whole run comes to.

    Attributes:
        sampled: records in the sample.
        factor: text of the input / text of the sample.
        counts: what became of the sample.
        tokens, records, work: bytes of the output, and of the work folder at its largest.
        seconds: of a run on this machine, doing nothing else.
    """

    sampled: int
    factor: float
    counts: Counts
    tokens: int
    records: int
    work: int
    seconds: float


def estimate(plan: Plan, workers: int) -> Estimate:
    """Prepares a sample, and scales up what it took.

    Raises:
        ProtlmError: the input is at fault within the sample.
    """
    blocks, cutting = _sample(plan)
    small = replace(plan, buckets=1)
    with tempfile.TemporaryDirectory(prefix="protlm-") as name:
        folder = Path(name)
        spills = [folder / str(i) for i in range(len(blocks))]
        if plan.records:
            from protlm_jax.data.prepare import records  # noqa: F401  (not to be timed)
        begun = time.perf_counter()
        for path, (source, block) in zip(spills, blocks, strict=True):
            scatter(block, source, small, path)
        scattered = time.perf_counter()
        gather(0, spills, small, folder)
        gathered = time.perf_counter()
        done = Gathered.read(folder, 0)
        assert done is not None
        for path in spills:
            done.counts.add(read_tail(path, small).counts)
        spilled = sum(path.stat().st_size for path in spills)
    text = sum(source.text_bytes for source in plan.sources)
    factor = max(1.0, text / sum(len(block.data) for _, block in blocks))
    # The parent cuts while the workers parse; writing begins when all is parsed.
    seconds = max(cutting, (scattered - begun) / workers) + (gathered - scattered) / workers
    tokens = sum(shard["bytes"] for shard in done.tokens.values())
    records_ = sum(shard["bytes"] for shard in done.records.values())
    return Estimate(
        sampled=done.counts.read,
        factor=factor,
        counts=done.counts,
        tokens=round(tokens * factor),
        records=round(records_ * factor),
        work=round(spilled * factor),
        seconds=seconds * factor,
    )


def _sample(plan: Plan) -> tuple[list[tuple[int, Block]], float]:
    """The first block of the first files with the numbers of the files, and the seconds that
    reading them took."""
    blocks = []
    begun = time.perf_counter()
    for number, source in enumerate(plan.sources[:SAMPLED_FILES]):
        reader = cut(source.path, SAMPLED_BYTES)
        blocks.append((number, next(reader)))
        reader.close()  # type: ignore[attr-defined]
    return blocks, time.perf_counter() - begun


def to_text(plan: Plan, workers: int) -> str:
    """The plan, and what it will take, for people."""
    told = estimate(plan, workers)
    counts, factor = told.counts, told.factor
    sizes = [source.bytes for source in plan.sources]
    text = sum(source.text_bytes for source in plan.sources)
    train, heldout = counts.splits["train"], counts.splits["heldout"]
    residues = int(train.letters.sum() + heldout.letters.sum())
    dropped = ", ".join(
        f"{reason} {_about(d.count * factor)}" for reason, d in counts.dropped.items() if d.count
    )
    kinds = [f"tokens {_bytes(told.tokens)}"] * plan.tokens
    kinds += [f"records {_bytes(told.records)}"] * plan.records
    free = shutil.disk_usage(next(p for p in plan.output.absolute().parents if p.exists())).free
    enough = free > told.tokens + told.records + told.work
    lines = {
        "dataset": f"{plan.dataset} {plan.release}".strip(),
        "input": f"{len(sizes)} file(s), {_bytes(sum(sizes))}, {_bytes(text)} of text",
        "sample": f"{told.sampled:,} records, one part in {factor:,.0f}; what follows is "
        "scaled up from it",
        "proteins": f"{_about(train.lengths.total() * factor)} to train on, "
        f"{_about(heldout.lengths.total() * factor)} held out",
        "residues": _about(residues * factor),
        "left out": dropped or "none in the sample",
        "shards": f"{plan.buckets} of each side and kind",
        "output": f"{plan.output}: {', '.join(kinds)}",
        "meanwhile": f"{_bytes(told.work)} more below {plan.output / '.work'}",
        "free disk": f"{_bytes(free)}{'' if enough else ': NOT ENOUGH'}",
        "time": f"{_duration(told.seconds)} with {workers} worker(s) on this machine",
    }
    return "\n".join(f"{name:<10} {value}" for name, value in lines.items())


def _about(number: float) -> str:
    """Three digits of a number, which is more than a sample tells."""
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
