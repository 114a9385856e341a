"""The sections on depth: claims, numbers and charts of one model or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import xarray

from protlm_jax.evaluation.depth.claims import FEW, WORDS, Claim, headlines, noise_claims, trends
from protlm_jax.evaluation.depth.claims import claims as claimed
from protlm_jax.evaluation.depth.files import control_of, few
from protlm_jax.evaluation.depth.results import by_noise, undefined
from protlm_jax.evaluation.statistics import Bootstrapped
from protlm_jax.report import page
from protlm_jax.report.charts import curves, heat_maps
from protlm_jax.report.depth_panels import CONTROL, PANELS, cells, noise_panels, panels, points
from protlm_jax.report.page import Piece, name
from protlm_jax.report.picture import PALETTE, Row, number

_NOTE = (
    "In brackets and as bands: 95 % intervals, from a bootstrap over proteins. "
    "They say how far other proteins could change a number, and nothing of other trainings. Layers "
    "count from 0. Of a run of layers, the largest change counts in a claim, and its one-sided "
    "97.5 % bound."
)
_TREND_NOTE = (
    "Deeper models of a family are mostly wider and trained longer too: intervals are over "
    "proteins, and cannot separate depth from what came with it."
)
_SIDE_NOTE = (
    "Layers are placed from 0, the first, to 1, the last; bands are 95 % intervals. Dashed: "
    "re-initialised copies. A click on a name in a legend shows it alone."
)
_SIDES = ("skip_kl", "skip_delta_nll", "lens_nll", "tuned_lens_nll", "relative_contribution",
          "cosine", "block_influence", "effective_rank")  # fmt: skip
_AFTER_LAYERS = ("lens_nll", "tuned_lens_nll", "effective_rank")  # by how many layers were passed
Stacks = Sequence[xarray.Dataset]


def depth(stacks: Iterable[xarray.Dataset]) -> Piece:
    """Trends first, then models side by side, then each of them.

    Args:
        stacks: of `evaluation.depth.analyse`, of every model and control, and by level of noise.
    """
    found = list(stacks)
    plain = [one for one in found if "noise" not in one.dims]
    models: dict[str, list[xarray.Dataset]] = {}
    for one in _trained(plain):
        models.setdefault(one.attrs["model"], []).append(one)
    parts = [_trend(where, rows, plain) for where, rows in trends(plain)]
    if len(models) > 1:
        parts.append(page.section("Models side by side", *_side_by_side(plain)))
    for title, own in models.items():
        shown = "What each layer does" if len(models) == 1 else title
        parts.append(_model(shown, own, found, fold=len(models) > 2))
    return Piece("").join(parts)


def first_numbers(stacks: Iterable[xarray.Dataset]) -> list[tuple[str, str]]:
    """The first numbers of a single model, with words; nothing for several."""
    trained = _trained(one for one in stacks if "noise" not in one.dims)
    if len({one.attrs["model"] for one in trained}) != 1:
        return []
    found = headlines(trained[0])
    keys = ("loss", "depth_score", "small_share", "exit_depth")
    return [(number(found[key].value), WORDS[key]) for key in keys if key in found]


def _trained(stacks: Iterable[xarray.Dataset]) -> list[xarray.Dataset]:
    return [one for one in stacks if not one.attrs.get("control_of")]


def _model(title: str, own: Stacks, found: Stacks, fold: bool) -> Piece:
    """All stacks of a model, one after the other."""
    proteins = own[0].sizes["protein"]
    parts = [
        page.caption(f"Measured on {proteins:,} proteins; {own[0].attrs['positions']}. {_NOTE}")
    ]
    if proteins < FEW:
        parts.append(page.caption(f"{few(proteins).capitalize()}."))
    for one in own:
        if len(own) > 1:
            parts.append(page.heading(f"The {name(one.attrs['stack'])}"))
        twin = control_of(one, found)
        parts.append(page.claims(claimed(one, twin), claimed(twin) if twin is not None else ()))
        charts = panels(one, twin)
        for other in found:
            same = all(other.attrs[key] == one.attrs[key] for key in ("model", "stack"))
            if same and "noise" in other.dims:
                charts += _by_noise(other)
        parts += [page.unfolds(f"Charts of {title}", *charts)] if fold else charts
        if reasons := undefined(one):
            rows = [(name(metric), reason) for metric, reason in reasons.items()]
            parts += [
                page.heading("Not defined here"),
                page.table(("measurement", "why"), rows, kind="text"),
            ]
    about = own[0].attrs
    passes = ", ".join(f"{x.attrs['forwards']:.4g} of the {x.attrs['stack']}" for x in own)
    method = (
        f"model: {about['model']}\npositions: {about['positions']}\n"
        f"cost: {about['seconds']:.4g} seconds, {about['tokens']:,} tokens, forwards {passes}\n"
        "Formulas, sources and traps: docs/depth.md. Every number, with other measures of the same "
        "changes:\ndepth.csv, and arrays with a sum for each protein in results.nc, beside this "
        "page."
    )
    return page.section(title, *parts, page.folded("How it was measured", method))


def _by_noise(measured: xarray.Dataset) -> list[Piece]:
    """What depends on how much of a protein is hidden."""
    heads = {level: headlines(one) for level, one in by_noise(measured)}
    keys = [key for key in WORDS if any(key in each for each in heads.values())]
    rows = [
        (number(level), *(_with_interval(each.get(key)) for key in keys))
        for level, each in heads.items()
    ]
    return [
        page.heading("With more or fewer residues hidden"),
        page.claims(noise_claims(measured)),
        page.table(("hidden", *map(WORDS.get, keys)), rows, kind="views") if keys else Piece(""),
        page.caption(
            "Embeddings that are scaled by the share that is hidden (ESM-2, DPLM) change sizes "
            "relative to the stream by that alone."
        ),
        *noise_panels(measured),
    ]


def _with_interval(head: Bootstrapped | None) -> str:
    """Such as "0.31 (0.28 to 0.34)"."""
    if head is None:
        return "-"
    low, high = head.interval()
    text = number(head.value)
    return text if low != low else f"{text} ({number(low)} to {number(high)})"


def _trend(where: str, rows: Sequence[Claim], stacks: Stacks) -> Piece:
    """One family over its numbers of layers: a dot for each model, controls dashed."""
    dots = []
    for one in stacks:
        about = one.attrs
        for key, head in headlines(one).items():
            if f"{about['family']}, {about['stack']}" == where and key in {r.name for r in rows}:
                low, high = head.interval()
                dots.append({
                    "series": name(key), "x": about["layers"], "y": head.value, "low": low,
                    "high": high, "dashed": bool(about.get("control_of")),
                    "place": f"{about['layers']}, {about['model']}",
                })  # fmt: skip
    dots.sort(key=lambda dot: (dot["series"], dot["x"]))
    chart = curves(dots, x="layers", y="share, or norm / stream", whole=True, whiskers=True)
    title = f"Trend across depth: {where}"
    return page.section(title, page.claims(rows), page.picture(chart), page.caption(_TREND_NOTE))


def _side_by_side(stacks: Stacks) -> Iterator[Piece]:
    """Curves over layers as a share of all, and the maps of all models on one scale."""
    trained = _trained(stacks)
    models = [one.attrs["model"] for one in trained]
    labelled = {
        title if models.count(title) == 1 else f"{title}, {one.attrs['stack']}": one
        for title, one in zip(models, trained, strict=True)
    }
    yield page.caption(_SIDE_NOTE)
    sides = {key: panel for panel in PANELS for key in panel.quantities if key in _SIDES}
    for key, panel in sides.items():
        rows: list[Row] = []
        colours = {}
        for index, (label, one) in enumerate(labelled.items()):
            twin = control_of(one, stacks)
            for source, words in ((one, label), (twin, f"{label}, {CONTROL}")):
                if source is not None and key in source:
                    rows += _relative(source, key, words, dashed=source is twin)
                    colours[words] = PALETTE[index % len(PALETTE)]
        if len(colours) > 1:
            title = ": ".join(filter(None, (panel.title, panel.quantities[key])))
            chart = curves(rows, x="relative depth", y=panel.unit, colours=colours)
            yield page.heading(title) + page.picture(chart, label=title)
    maps = {
        label: cells(one, "skip_effect")[""]
        for label, one in labelled.items() if "skip_effect" in one
    }  # fmt: skip
    if len(maps) > 1:
        chart = heat_maps(maps, row="layer left out", column="later layer")
        yield page.heading("Who builds on whom") + page.picture(chart, label="Who builds on whom")


def _relative(measured: xarray.Dataset, key: str, series: str, dashed: bool) -> list[Row]:
    """The whole layer's curve of a quantity, over relative depth."""
    layers, passed = int(measured.attrs["layers"]), key in _AFTER_LAYERS
    last = max(layers if passed else layers - 1, 1)
    where = "after {} of {} layers" if passed else "layer {} of {}"
    one = measured.sel(part="layer") if "part" in measured[key].dims else measured
    return [
        {**row, "series": series, "dashed": dashed, "x": row["x"] / last,
         "place": where.format(number(row["x"]), layers)}
        for row in points(one, key)
    ]  # fmt: skip
