"""Plans as text: a table with a column per phase, and notes below it."""

from __future__ import annotations

from collections.abc import Sequence

from protlm_jax.planning.collectives import KINDS
from protlm_jax.planning.compile import Plan
from protlm_jax.planning.roofline import RESOURCES, SPENT


def table(plans: Sequence[Plan]) -> str:
    """The plans side by side; below them what to change where one does not fit."""
    columns = [_cells(plan) for plan in plans]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    for plan in plans:
        notes = [f"does not fit; try {plan.suggestion}"] if plan.suggestion else []
        notes += [f"attention: {plan.attention}"] if plan.attention else []
        notes += [plan.chosen] if plan.chosen else []
        notes += plan.whole
        if plan.unsplit:
            notes.append(f"every device holds all rows of {', '.join(plan.unsplit)}")
        lines += [f"phase {plan.phase}: {note}" if plan.phase else note for note in notes]
    return "\n".join(lines)


def _cells(plan: Plan) -> dict[str, str]:
    """One column by the names of its rows."""
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
    by_axis = (plan.collectives_by_axis or {}).items()
    for kind in KINDS:
        found = [(axes or "no axis", kinds[kind]) for axes, kinds in by_axis if kind in kinds]
        text = "; ".join(f"{axes}: {c.count:,} of {gigabytes(c.bytes)}" for axes, c in found)
        cells[f"{kind}, per core and step"] = text or "-" if plan.fits else "not known"
    return cells | _speed(plan) | {"compiled in": f"{plan.compile_seconds:.0f} s"}


def _speed(plan: Plan) -> dict[str, str]:
    """The lower part of a column: how fast a step is."""
    alone, spent = plan.seconds or {}, plan.spent or {}
    length = plan.step_seconds or 1.0
    parts = [f"{name} {spent[name] / length:.0%}" for name in SPENT if spent.get(name)]
    cells = {
        "executed FLOPs per step": f"{plan.executed_flops or 0:.3g}",
        "through HBM, per core and step": gigabytes(plan.hbm_bytes or 0),
        **{f"{name} alone": f"{alone.get(name, 0.0):.3f} s" for name in RESOURCES},
        "MFU were nothing else slow": f"{plan.roofline_mfu or 0:.1%}",
        "a step": f"{length:.3f} s",
        "bound by": ", ".join(parts),
        "MFU, HFU": f"{plan.mfu or 0:.1%}, {plan.hfu or 0:.1%}",
        "tokens per second": f"{plan.tokens_per_second or 0:,.0f}",
        "of them from each host": f"{plan.host_tokens_per_second or 0:,.0f}",
        "all steps": f"{plan.days or 0:,.1f} days",
    }
    return cells if plan.step_seconds else dict.fromkeys(cells, "not known")


def gigabytes(count: int) -> str:
    """Bytes in units of 2^30, as the compiler counts them."""
    return f"{count / 2**30:.2f} GiB"
