"""Plans as people read them: a table with a column per phase."""

from __future__ import annotations

from collections.abc import Sequence

from protlm_jax.planning.compile import Plan
from protlm_jax.planning.program import KINDS


def table(plans: Sequence[Plan]) -> str:
    """The plans side by side; below them what to change where one does not fit."""
    columns = [_cells(plan) for plan in plans]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    for plan in plans:
        name = f"phase {plan.phase}: " if plan.phase else ""
        if plan.suggestion:
            lines.append(f"{name}does not fit; try {plan.suggestion}")
        if plan.chosen:
            lines.append(f"{name}{plan.chosen}")
        lines += [f"{name}{line}" for line in plan.whole]
        if plan.unsplit:
            lines.append(f"{name}every device holds all rows of {', '.join(plan.unsplit)}")
    return "\n".join(lines)


def _cells(plan: Plan) -> dict[str, str]:
    """A column: what stands in each row of the table."""
    cells = {
        "phase": plan.phase or "-",
        "topology": plan.topology,
        f"mesh ({', '.join(plan.mesh)})": " x ".join(map(str, plan.mesh.values())),
        "batch (rows x tokens)": f"{plan.rows:,} x {plan.length:,}",
        "in parts of rows": f"{plan.rows // plan.accumulate:,}",
        "dtype, remat": f"{plan.dtype}, {plan.remat}",
        "parameters": f"{plan.parameters:,}",
        "state per core": gigabytes(plan.state_bytes),
        "peak HBM per core": gigabytes(plan.peak_bytes),
        "available": gigabytes(plan.available_bytes),
        "fits": "yes" if plan.fits else "no",
        "model FLOPs per step": f"{plan.model_flops:.3g}",
    }
    for kind in KINDS:
        said = plan.collectives.get(kind)
        text = f"{said.count:,} of {gigabytes(said.bytes)}" if said else "-"
        cells[f"{kind}, per core and step"] = text if plan.fits else "not known"
    return cells | {"compiled in": f"{plan.compile_seconds:.0f} s"}


def gigabytes(count: int) -> str:
    """Bytes in units of 2^30, as the compiler counts them."""
    return f"{count / 2**30:.2f} GiB"
