"""The depth part of the report: claims, numbers and charts of one model or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import xarray

from protlm_jax.evaluation.depth.claims import (
    FEW,
    WORDS,
    Claim,
    claims,
    headlines,
    noise_claims,
    trends,
)
from protlm_jax.evaluation.depth.claims import table as claims_table
from protlm_jax.evaluation.depth.files import control_of, few
from protlm_jax.evaluation.depth.results import by_noise, undefined
from protlm_jax.report.charts import curves
from protlm_jax.report.charts import trends as trend_chart
from protlm_jax.report.depth_charts import CONTROL, cells, noise_panels, panels, points
from protlm_jax.report.grids import heat_maps
from protlm_jax.report.page import (
    Piece,
    caption,
    folded,
    heading,
    picture,
    section,
    table,
    unfolds,
)
from protlm_jax.report.picture import PALETTE, Row, number
from protlm_jax.report.sections import name

WHAT = "What each layer does"
_NOTE = (
    "In brackets and as bands: 95 % intervals, from a bootstrap over proteins. "
    "They say how far other proteins could change a number, and nothing of other trainings. Layers "
    "count from 0."
)
_VERDICTS = (
    "A claim is undecided where the interval of its number holds the threshold. Of a run of "
    "layers, the largest change counts, and its one-sided 97.5 % bound."
)
_TREND_NOTE = (
    "Deeper models of a family are mostly wider and trained longer too: intervals are over "
    "proteins, and cannot separate depth from what came with it."
)
# Of models side by side, quantity -> title, unit, and whether it counts layers passed.
_SIDES = {
    "skip_kl": ("What the answer loses without a layer", "nats per residue", False),
    "skip_delta_nll": ("Rise of the loss without a layer", "nats per residue", False),
    "lens_nll": ("Loss if the answer were read early", "nats per residue", True),
    "tuned_lens_nll": ("The same through a trained map", "nats per residue", True),
    "relative_contribution": ("Size of what a layer adds", "norm / stream", False),
    "cosine": ("Direction of what a layer adds", "cosine with stream", False),
    "block_influence": ("How far a layer turns the stream", "1 - cosine", False),
    "effective_rank": ("Directions in use", "effective rank", True),
}
Stacks = Sequence[xarray.Dataset]


def depth(stacks: Iterable[xarray.Dataset]) -> Piece:
    """Trends first, then models side by side, then each of them.

    Args:
        stacks: of `evaluation.depth.analyse`, of every model and control, and by level of noise.
    """
    found = list(stacks)
    plain = [one for one in found if "noise" not in one.dims]
    trained = [one for one in plain if not one.attrs.get("control_of")]
    models: dict[str, list[xarray.Dataset]] = {}
    for one in trained:
        models.setdefault(one.attrs["model"], []).append(one)
    parts = [_trend(where, rows, plain) for where, rows in trends(plain)]
    if len(models) > 1:
        parts.append(section("Models side by side", *_side_by_side(trained, plain)))
    for title, own in models.items():
        shown = WHAT if len(models) == 1 else title
        parts.append(_model(shown, own, found, fold=len(models) > 2))
    return Piece("").join(parts)


def leads(stacks: Iterable[xarray.Dataset]) -> list[tuple[str, str]]:
    """The first numbers of a single model, with words; nothing for several."""
    trained = [one for one in stacks if not one.attrs.get("control_of") and "noise" not in one.dims]
    if len({one.attrs["model"] for one in trained}) != 1:
        return []
    found = headlines(trained[0])
    keys = ("loss", "depth_score", "small_share", "exit_depth")
    return [(number(found[key].value), WORDS[key]) for key in keys if key in found]


def _model(title: str, own: Stacks, found: Stacks, fold: bool) -> Piece:
    """All stacks of a model, one after the other."""
    proteins = own[0].sizes["protein"]
    words = f"Measured on {proteins:,} proteins; {own[0].attrs['positions']}. {_NOTE}"
    parts = [caption(words)]
    if proteins < FEW:
        parts.append(caption(f"{few(proteins).capitalize()}."))
    for one in own:
        if len(own) > 1:
            parts.append(heading(f"The {name(one.attrs['stack'])}"))
        twin = control_of(one, found)
        parts.append(_claims(claims(one, twin), claims(twin) if twin is not None else ()))
        charts = panels(one, twin)
        for other in found:
            same = all(other.attrs[key] == one.attrs[key] for key in ("model", "stack"))
            if same and "noise" in other.dims:
                charts += _by_noise(other)
        parts += [unfolds(f"Charts of {title}", *charts)] if fold else charts
        if reasons := undefined(one):
            rows = [(name(metric), reason) for metric, reason in reasons.items()]
            parts += [heading("Not defined here"), table(("measurement", "why"), rows, kind="text")]
    return section(title, *parts, folded("How it was measured", _method(own)))


def _claims(rows: Sequence[Claim], control: Sequence[Claim] = ()) -> Piece:
    if not rows:
        return Piece("")
    made = claims_table(rows, control)
    return table(made.columns, made.cells(), kind="views wrap") + caption(_VERDICTS)


def _by_noise(measured: xarray.Dataset) -> list[Piece]:
    """What depends on how much of a protein is hidden."""
    heads = {level: headlines(one) for level, one in by_noise(measured)}
    keys = [key for key in WORDS if any(key in each for each in heads.values())]
    rows = [
        (number(level), *(_estimate(each, key) for key in keys)) for level, each in heads.items()
    ]
    header = ("hidden", *(WORDS[key] for key in keys))
    return [
        heading("With more or fewer residues hidden"),
        _claims(noise_claims(measured)),
        table(header, rows, kind="views") if keys else Piece(""),
        caption(
            "Embeddings that are scaled by the share that is hidden (ESM-2, DPLM) change sizes "
            "relative to the stream by that alone."
        ),
        *noise_panels(measured),
    ]


def _estimate(heads: Mapping[str, object], key: str) -> str:
    """A headline with its interval: "0.31 (0.28 to 0.34)"."""
    head = heads.get(key)
    if head is None:
        return "-"
    low, high = head.interval()  # type: ignore[attr-defined]
    text = number(head.value)  # type: ignore[attr-defined]
    return text if low != low else f"{text} ({number(low)} to {number(high)})"


def _method(own: Stacks) -> str:
    about = own[0].attrs
    passes = ", ".join(f"{x.attrs['forwards']:.4g} of the {x.attrs['stack']}" for x in own)
    return (
        f"model: {about['model']}\npositions: {about['positions']}\n"
        f"cost: {about['seconds']:.4g} seconds, {about['tokens']:,} tokens, forwards {passes}\n"
        "Formulas, sources and traps: docs/depth.md. Every number, with other measures of the same "
        "changes:\ndepth.csv, and arrays with a sum for each protein in results.nc, beside this "
        "page."
    )


def _trend(where: str, rows: Sequence[Claim], stacks: Stacks) -> Piece:
    """One family over its numbers of layers: a dot for each model, controls dashed."""
    group = [x for x in stacks if f"{x.attrs['family']}, {x.attrs['stack']}" == where]
    dots = []
    for one in group:
        for key, head in headlines(one).items():
            if any(row.name == key for row in rows):
                low, high = head.interval()
                dots.append(
                    {"series": name(key), "x": one.attrs["layers"], "y": head.value, "low": low,
                     "high": high, "dashed": bool(one.attrs.get("control_of")),
                     "place": one.attrs["model"]}
                )  # fmt: skip
    dots.sort(key=lambda dot: (dot["series"], dot["x"]))
    chart = trend_chart(dots, x="layers", y="share, or norm / stream")
    return section(
        f"Trend across depth: {where}", _claims(rows), picture(chart), caption(_TREND_NOTE)
    )


def _side_by_side(trained: Stacks, plain: Stacks) -> list[Piece]:
    """Curves over layers as a share of all, and the maps of all models on one scale."""
    models = [one.attrs["model"] for one in trained]
    labels = [
        title if models.count(title) == 1 else f"{title}, {one.attrs['stack']}"
        for title, one in zip(models, trained, strict=True)
    ]
    parts = []
    for key, (title, unit, passed) in _SIDES.items():
        rows: list[Row] = []
        colours = []
        for index, (label, one) in enumerate(zip(labels, trained, strict=True)):
            twin = control_of(one, plain)
            for source, words in ((one, label), (twin, f"{label}, {CONTROL}")):
                if source is not None and key in source:
                    rows += _relative(source, key, passed, words, source is twin)
                    colours.append(PALETTE[index % len(PALETTE)])
        if len(colours) > 1:
            chart = curves(rows, x="relative depth", y=unit, colours=colours)
            parts += [heading(title), picture(chart, label=title)]
    maps = {
        label: cells(one, "skip_effect")[""]
        for label, one in zip(labels, trained, strict=True)
        if "skip_effect" in one
    }
    if len(maps) > 1:
        chart = heat_maps(maps, row="layer left out", column="later layer")
        parts += [heading("Who builds on whom"), picture(chart, label="Who builds on whom")]
    words = (
        "Layers are placed from 0, the first, to 1, the last; bands are 95 % intervals. Dashed: "
        "re-initialised copies. A click on a name in a legend shows it alone."
    )
    return [caption(words), *parts]


def _relative(
    measured: xarray.Dataset, key: str, passed: bool, series: str, dashed: bool
) -> list[Row]:
    """The whole layer's curve of a quantity, over relative depth."""
    layers = int(measured.attrs["layers"])
    last = max(layers if passed else layers - 1, 1)
    where = "after {} of {} layers" if passed else "layer {} of {}"
    one = measured.sel(part="layer") if "part" in measured[key].dims else measured
    return [
        {**row, "series": series, "dashed": dashed, "x": row["x"] / last,
         "place": where.format(number(row["x"]), layers)}
        for row in points(one, key)
    ]  # fmt: skip
