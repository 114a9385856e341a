"""What `protlm embed` tells when it is done, from the manifest beside its output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protlm_jax.evaluation.score_files import Outcome

_LISTED = 20  # failures and long proteins named; the manifest has all of them


def outcome(made: dict[str, Any], output: Path, *, again: bool = False) -> Outcome:
    """The text for people, and how many records have no embedding; `again` of what was there."""
    settings = made["settings"]
    layers, depth = settings["layers"], settings["of_layers"]
    what = f"layer {layers[0]} of {depth}" if len(layers) == 1 else f"{len(layers)} layers"
    began = "nothing to do: " if again else ""
    lines = [
        f"{began}{made['embedded']:,} of {made['proteins']:,} proteins embedded, "
        f"{made['residues']:,} residues: {' and '.join(settings['vectors'])}, {what}, "
        f"{settings['dtype']}, computed in {settings['compute']}"
    ]
    written = min((file["proteins"] for file in made["files"].values()), default=0)
    if doubles := made["embedded"] - written:
        lines.append(
            f"{doubles:,} proteins have the residues of an earlier one, under whose name they are "
            "written once"
        )
    trained, window = made["trained_tokens"], settings["window"]
    if trained is not None and window > trained:
        lines.append(
            f"up to {window} residues are read at once, and the model was trained on rows of "
            f"{trained} tokens: what it says beyond was never trained"
        )
    long = [f"{w['id']} ({w['residues']:,} in {w['windows']})" for w in made["windowed"]]
    lines += listed(
        long,
        f"longer than {window:,} residues, read through windows that overlap by half, each residue "
        "taken where it is farthest from a cut",
    )
    failures = [
        f"line {f['line']}, {f['id'] or 'without a name'}: {f['reason']}" for f in made["failures"]
    ]
    lines += listed(failures, "not embedded")
    names = ", ".join(str(output.with_name(name)) for name in made["files"])
    said = "they are in" if again else "wrote"
    lines.append(f"{said} {names} and {output.with_name(output.name + '.json')}")
    return Outcome("\n".join(lines), len(failures))


def listed(items: Sequence[str], what: str) -> list[str]:
    """A count, and the first items, one a line."""
    if not items:
        return []
    more = [f"  ... and {len(items) - _LISTED:,} more"] if len(items) > _LISTED else []
    return [f"{len(items):,} {what}:", *(f"  {item}" for item in items[:_LISTED]), *more]
