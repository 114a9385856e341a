"""The charts of what was measured on one stack, whichever measurements there are.

A quantity is drawn by the names of its dimensions: over layers or depths it is a curve, over two of
them a heat map, and a dimension before those (a part, a block's size, a level of noise) gives one
of them each. A quantity with other dimensions becomes a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray

from protlm_jax.evaluation.depth.claims import span
from protlm_jax.evaluation.depth.results import names, records
from protlm_jax.evaluation.tables import Table
from protlm_jax.report import page
from protlm_jax.report.charts import curves, heat_maps
from protlm_jax.report.page import Piece, name
from protlm_jax.report.picture import PALETTE, Picture, Row, distinct, number, steps

CONTROL = "re-initialised"
NOISE = "{} hidden"  # a level of noise


@dataclass(frozen=True)
class Panel:
    """One chart, or one group of heat maps.

    Attributes:
        title: above it.
        quantities: name -> what its curve is called; "" for the only one.
        unit: of the axis.
        words: below it.
    """

    title: str
    quantities: Mapping[str, str]
    unit: str
    words: str = ""


PANELS = (
    Panel("Who builds on whom", {"skip_effect": ""}, "change of what is added",
          "How much what a later layer adds changes, relative to its size, when an earlier one is "
          "left out. Dark cells are layers that build on each other."),
    Panel("Who reads whom directly", {"local_effect": ""}, "change of what is added",
          "The same with what a layer wrote taken from the input of one later layer at a time; the "
          "layers in between are unchanged."),
    Panel("Which part of a layer others build on", {"sublayer_skip_effect": ""},
          "change of what is added", "The first map with one part of the layer adding nothing."),
    Panel("What the answer loses without a layer",
          {"skip_kl": "divergence", "skip_delta_nll": "rise of loss"}, "nats per residue",
          "Divergence of the answer from the whole model's, and rise of the loss, without one "
          "layer."),
    Panel("And without a part of it", {"sublayer_skip_kl": ""}, "nats per residue",
          "Divergence of the answer when one part of one layer adds nothing."),
    Panel("Layers exchanged, or run twice",
          {"swap_kl": "exchanged with the next", "repeat_kl": "run twice"}, "nats per residue",
          "Divergence of the answer. Layers that can be exchanged do not build on each other."),
    Panel("Blocks of layers left out", {"delete_kl": ""}, "nats per residue",
          "Divergence of the answer without so many neighbours, by the first of them."),
    Panel("Blocks of layers in the opposite order", {"reverse_kl": ""}, "nats per residue",
          "Divergence of the answer with so many neighbours run backwards, by the first of them."),
    Panel("Reading the answer early",
          {"lens_nll": "the model's head", "tuned_lens_nll": "with a trained map"},
          "nats per residue",
          "The loss if the head read the stream after so many layers; the last point is the model "
          "itself. A trained map is judged on proteins that it was not fitted to."),
    Panel("How often the early answer is the final one",
          {"lens_top1_agreement": "the model's head", "tuned_lens_top1_agreement": "trained map"},
          "share of residues", "The same amino acid comes first."),
    Panel("Until where a residue is needed", {"erasure_kl": ""}, "nats per residue",
          "Divergence of the answer when the stream of one visible residue is replaced by a mean "
          "one at this depth."),
    Panel("Where the evidence lies", {"context_share": ""}, "share on other tokens",
          "Share of the answer's integrated gradients on tokens that are not predicted: "
          "near 1 the evidence has still to be fetched, near 0 it is there."),
    Panel("Size of what is added", {"relative_contribution": ""}, "norm / stream",
          "Norm of what a layer, or a part of it, adds, relative to the stream. In a stream that "
          "grows, later layers look small."),
    Panel("Direction of what is added", {"cosine": ""}, "cosine with stream",
          "Below zero a layer erases, near zero it adds something new, above zero it amplifies."),
    Panel("Size of the stream", {"stream_norm": ""}, "norm",
          "Mean norm of the stream before the first layer, and after each."),
    Panel("How far each layer turns the stream", {"block_influence": ""}, "1 - cosine",
          "Layers near 0 leave its direction as it was: candidates to prune."),
    Panel("Angle between depths", {"angular_distance": ""}, "angle / \u03c0",
          "Dark cells are depths between which the stream turns far."),
    Panel("Likeness of depths", {"cka": ""}, "linear CKA",
          "Dark cells are depths at which positions are arranged alike."),
    Panel("Directions in use", {"effective_rank": ""}, "effective rank",
          "exp of the entropy of the singular values of the streams of some positions."),
    Panel("Dimension of the cloud of streams", {"intrinsic_dimension": ""}, "TwoNN estimate",
          "From the distances to the two nearest neighbours of each position."),
)  # fmt: skip
_BY_NOISE = {"skip_effect", "skip_kl", "lens_nll", "relative_contribution", "cosine"}
# Other measures of the same changes are in the table that is written beside the report.
_CHANGES = ("base", "skip", "sublayer_skip", "swap", "repeat", "delete", "reverse", "lens",
            "tuned_lens", "erasure")  # fmt: skip
_MEASURES = ("l2", "kl", "kl_reverse", "top1_agreement", "nll", "accuracy", "js", "top3_overlap",
             "rank_correlation", "delta_nll")  # fmt: skip
_KNOWN = {"_".join(pair) for pair in itertools.product(_CHANGES, _MEASURES)}.union(
    *(panel.quantities for panel in PANELS)
)
# What an axis of layers counts.
_AXES = {"layer": "layer", "first": "first layer", "skipped": "layer left out",
         "depth": "layers passed", "at_depth": "layers passed"}  # fmt: skip
_COLUMNS = {"affected": "later layer", "other_depth": "layers passed"}
_SCALES = ("noise", "size")  # dimensions whose entries are steps of one scale
_ENTRIES = {"layer": "whole layer", "mlp": "MLP"}
_MOST_ROWS = 60


def panels(stack: xarray.Dataset, control: xarray.Dataset | None = None) -> list[Piece]:
    """Every chart for which there is a measurement; a control's curves are dashed."""
    more = [Panel(name(key).capitalize(), {key: ""}, name(key))
            for key in names(stack) if key not in _KNOWN]  # fmt: skip
    return [part for panel in (*PANELS, *more) if (part := _panel(panel, stack, control))]


def noise_panels(stack: xarray.Dataset) -> list[Piece]:
    """The whole layers' charts of a stack measured by level of noise: a curve or map a level."""
    whole = stack.sel(part="layer") if "part" in stack.dims else stack
    return [_panel(panel, whole, None) for panel in PANELS if _BY_NOISE & {*panel.quantities}]


def points(stack: xarray.Dataset, key: str, label: str = "") -> list[dict[str, Any]]:
    """A quantity over layers as points of curves, one for each entry of the dimensions before."""
    *before, last = map(str, stack[key].dims)
    rows = []
    for entry in records(stack, key):
        words = (label, *(_entry(dim, entry[dim]) for dim in before))
        series = ", ".join(filter(None, words)) or name(key)
        row = {"series": series, "x": float(entry[last]), "y": entry["value"]}
        rows.append(row | {end: entry[end] for end in ("low", "high") if end in entry})
    return rows


def cells(stack: xarray.Dataset, key: str) -> dict[str, list[Row]]:
    """By map the cells above the diagonal: elsewhere an effect has no meaning."""
    *before, row, column = map(str, stack[key].dims)
    maps: dict[str, list[Row]] = {}
    for entry in records(stack, key):
        words = ", ".join(_entry(dim, entry[dim]) for dim in before)
        if entry[column] > entry[row]:
            maps.setdefault(words, []).append({**entry, "row": entry[row], "column": entry[column]})
    return maps


def _panel(panel: Panel, stack: xarray.Dataset, control: xarray.Dataset | None) -> Piece:
    keys = [key for key in panel.quantities if key in stack]
    if not keys:
        return Piece("")
    dims = list(map(str, stack[keys[0]].dims))
    if len(dims) > 1 and dims[-1] in _COLUMNS and dims[-2] in _AXES:
        chart = _maps(stack, control, keys[0])
    elif dims and dims[-1] in (*_AXES, *_SCALES):
        chart = page.picture(_curves(panel, stack, control, keys), label=panel.title)
    else:
        chart = _table(stack, keys[0])
    return (
        page.heading(panel.title) + chart + page.caption(panel.words)
        if chart.strip()
        else Piece("")
    )


def _curves(
    panel: Panel, stack: xarray.Dataset, control: xarray.Dataset | None, keys: Sequence[str]
) -> Picture:
    rows, twins = (
        [row for key in keys if source is not None and key in source
         for row in points(source, key, panel.quantities[key])]
        for source in (stack, control)
    )  # fmt: skip
    dims, series = list(map(str, stack[keys[0]].dims)), distinct(rows, "series")
    scaled = dims[0] in _SCALES and len(series) > 2
    hues = steps(len(series)) if scaled else PALETTE
    colours: dict[str, str] = dict(zip(series, hues, strict=False))
    if control is not None:
        alone = len(series) == 1
        for row in rows:
            row |= {"dashed": False, **({"series": "this model"} if alone else {})}
        for row in twins:
            words = CONTROL if alone else f"{row['series']}, {CONTROL}"
            colours[words] = "var(--soft)" if alone else colours[row["series"]]
            row |= {"dashed": True, "series": words}
    return curves(
        rows + twins,
        x=_AXES.get(dims[-1], name(dims[-1])),
        y=panel.unit,
        references={"blind guess": math.log(20)} if "lens_nll" in panel.quantities else None,
        whole=dims[-1] in _AXES,
        colours=colours,
    )


def _maps(stack: xarray.Dataset, control: xarray.Dataset | None, key: str) -> Piece:
    maps = {words or "this model": some for words, some in cells(stack, key).items()}
    if len(maps) == 1 and control is not None and key in control:
        maps[CONTROL] = cells(control, key)[""]
    row, column = map(str, stack[key].dims[-2:])
    if not any(cell["value"] for some in maps.values() for cell in some):
        return Piece("")
    return page.picture(heat_maps(maps, row=_AXES[row], column=_COLUMNS[column]), label=name(key))


def _table(stack: xarray.Dataset, key: str) -> Piece:
    """Every entry with its interval, up to a number of them."""
    dims = list(map(str, stack[key].dims))
    found = records(stack, key)
    rows = [
        [*(_entry(dim, x[dim]) for dim in dims), x["value"], span(x.get("low"), x.get("high"))]
        for x in found[:_MOST_ROWS]
    ]
    made = Table([*map(name, dims), "value", "95 % interval"], rows)
    more = "The other values are in the tables beside this page." * (len(found) > _MOST_ROWS)
    return page.table(made.columns, made.cells()) + page.caption(more)


def _entry(dim: str, label: Any) -> str:
    """An entry of a dimension, for readers."""
    if isinstance(label, str):
        return _ENTRIES.get(label, name(label))
    return {"size": "{} layers", "noise": NOISE}.get(dim, f"{name(dim)} {{}}").format(number(label))
