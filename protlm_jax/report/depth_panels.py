"""What the depth report shows, and what it says of each measurement."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One chart, or one group of heat maps.

    Attributes:
        title: above it.
        quantities: name -> what its curve is called; "" for the only one.
        unit: of the axis.
        words: below it.
        guess: draw the loss of a blind guess.
    """

    title: str
    quantities: Mapping[str, str]
    unit: str
    words: str
    guess: bool = False


PANELS = (
    Panel(
        "Who builds on whom",
        {"skip_effect": ""},
        "change of what is added",
        "How much what a later layer adds changes, relative to its size, when an earlier one is "
        "left out. Dark cells are layers that build on each other.",
    ),
    Panel(
        "Who reads whom directly",
        {"local_effect": ""},
        "change of what is added",
        "The same with what a layer wrote taken from the input of one later layer at a time, "
        "nothing in between answering to it.",
    ),
    Panel(
        "Which part of a layer others build on",
        {"sublayer_skip_effect": ""},
        "change of what is added",
        "The first map with one part of the layer adding nothing.",
    ),
    Panel(
        "What the answer loses without a layer",
        {"skip_kl": "divergence", "skip_delta_nll": "rise of loss"},
        "nats per residue",
        "Divergence of the answer from the whole model's, and rise of the loss, when one layer is "
        "left out.",
    ),
    Panel(
        "And without a part of it",
        {"sublayer_skip_kl": ""},
        "nats per residue",
        "Divergence of the answer when one part of one layer adds nothing.",
    ),
    Panel(
        "Layers exchanged, or run twice",
        {"swap_kl": "exchanged with the next", "repeat_kl": "run twice"},
        "nats per residue",
        "Divergence of the answer. Layers that can be exchanged do not build on each other.",
    ),
    Panel(
        "Blocks of layers left out",
        {"delete_kl": ""},
        "nats per residue",
        "Divergence of the answer without so many neighbours, by the first of them.",
    ),
    Panel(
        "Blocks of layers in the opposite order",
        {"reverse_kl": ""},
        "nats per residue",
        "Divergence of the answer with so many neighbours run backwards, by the first of them.",
    ),
    Panel(
        "Reading the answer early",
        {"lens_nll": "the model's head", "tuned_lens_nll": "with a trained map"},
        "nats per residue",
        "The loss if the head read the stream after so many layers; the last point is the model "
        "itself. A trained map is judged on proteins that it was not fitted to.",
        guess=True,
    ),
    Panel(
        "How often the early answer is the final one",
        {"lens_top1_agreement": "the model's head", "tuned_lens_top1_agreement": "trained map"},
        "share of residues",
        "The same amino acid comes first.",
    ),
    Panel(
        "Until where a residue is needed",
        {"erasure_kl": ""},
        "nats per residue",
        "Divergence of the answer when the stream of one visible residue is replaced by a mean one "
        "at this depth.",
    ),
    Panel(
        "Where the evidence lies",
        {"context_share": ""},
        "share on other tokens",
        "Share of the answer's integrated gradients that lies on tokens other than those asked "
        "for: near 1 it has still to be fetched, near 0 it is there.",
    ),
    Panel(
        "Size of what is added",
        {"relative_contribution": ""},
        "norm / stream",
        "Norm of what a layer, or a part of it, adds, relative to the stream. A stream that grows "
        "makes later ones look small.",
    ),
    Panel(
        "Direction of what is added",
        {"cosine": ""},
        "cosine with stream",
        "Below zero a layer erases, near zero it adds something new, above zero it amplifies.",
    ),
    Panel(
        "Size of the stream",
        {"stream_norm": ""},
        "norm",
        "Mean norm of the stream before the first layer, and after each.",
    ),
    Panel(
        "How far each layer turns the stream",
        {"block_influence": ""},
        "1 - cosine",
        "Layers near 0 leave its direction as it was: candidates to prune.",
    ),
    Panel(
        "Angle between depths",
        {"angular_distance": ""},
        "angle / \u03c0",
        "Dark cells are depths between which the stream turns far.",
    ),
    Panel(
        "Likeness of depths",
        {"cka": ""},
        "linear CKA",
        "Dark cells are depths at which positions are arranged alike.",
    ),
    Panel(
        "Directions in use",
        {"effective_rank": ""},
        "effective rank",
        "exp of the entropy of the singular values of the streams of some positions.",
    ),
    Panel(
        "Dimension of the cloud of streams",
        {"intrinsic_dimension": ""},
        "TwoNN estimate",
        "From the distances to the two nearest neighbours of each position.",
    ),
)
# Other measures of the same changes are in the table that is written beside the report.
_MEASURES = ("l2", "kl", "kl_reverse", "top1_agreement", "nll", "accuracy", "js", "top3_overlap",
             "rank_correlation", "delta_nll")  # fmt: skip
_KINDS = ("base", "skip", "sublayer_skip", "swap", "repeat", "delete", "reverse", "lens",
          "tuned_lens", "erasure")  # fmt: skip
BY_NOISE = {"skip_effect", "skip_kl", "lens_nll", "relative_contribution", "cosine"}
KNOWN = {f"{kind}_{measure}" for kind, measure in itertools.product(_KINDS, _MEASURES)} | {
    quantity for panel in PANELS for quantity in panel.quantities
}
