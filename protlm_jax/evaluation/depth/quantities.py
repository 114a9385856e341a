"""The attributes of quantities in files of results: units, a long name, and the source."""

from __future__ import annotations

_CSORDAS = "Csordás, Manning and Potts 2025, arXiv 2505.13898"
# Of one number: units, long name, source.
_ALONE = {
    "relative_contribution": ("1", "norm of what is added / norm of the stream", _CSORDAS),
    "cosine": ("1", "cosine of what is added with the stream", _CSORDAS),
    "stream_norm": ("1", "norm of the stream", _CSORDAS),
    "block_influence": ("1", "1 - cos(h_l, h_{l+1})", "Men et al. 2024, arXiv 2403.03853"),
    "angular_distance": (
        "pi rad", "angle between the streams of two depths", "Gromov et al. 2024, arXiv 2403.17887",
    ),
    "skip_effect": ("1", "relative change of what a later layer adds", _CSORDAS),
    "sublayer_skip_effect": ("1", "relative change of what a later layer adds", _CSORDAS),
    "local_effect": ("1", "relative direct change of what a later layer adds", _CSORDAS),
    "context_share": (
        "1", "share of the integrated gradients on tokens that are not read", _CSORDAS,
    ),
    "cka": ("1", "linear centred kernel alignment", "Kornblith et al. 2019, arXiv 1905.00414"),
    "effective_rank": ("1", "exp of the entropy of the singular values", "Roy and Vetterli 2007"),
    "intrinsic_dimension": ("1", "TwoNN dimension", "Facco et al. 2017"),
}  # fmt: skip
_CHANGES = {
    "base": ("the model itself", ""),
    "skip": ("a layer left out", _CSORDAS),
    "sublayer_skip": ("a sublayer left out", _CSORDAS),
    "swap": ("a layer exchanged with the next", "Lad et al. 2024, arXiv 2406.19384"),
    "repeat": ("a layer run twice", ""),
    "delete": ("a block of layers left out", "Gromov et al. 2024, arXiv 2403.17887"),
    "reverse": ("a block of layers reversed", "Kapl et al. 2025, arXiv 2512.08819"),
    "erasure": ("the stream of one residue replaced by a mean stream", _CSORDAS),
    "lens": ("the head on the stream of a depth", _CSORDAS),
    "tuned_lens": (
        "the head on a trained map of a stream",
        "Belrose et al. 2023, arXiv 2303.08112",
    ),
    "edit": ("under a layer program", ""),
}
_MEASURES = {
    "l2": ("1", "Euclidean distance of the answers' probabilities"),
    "kl": ("nats", "divergence of the changed answer from the model's"),
    "kl_reverse": ("nats", "divergence of the model's answer from the changed one"),
    "top1_agreement": ("1", "share of residues with the same first amino acid"),
    "nll": ("nats", "loss"),
    "delta_nll": ("nats", "rise of the loss"),
    "accuracy": ("1", "share of residues whose first amino acid is the true one"),
    "js": ("nats", "Jensen-Shannon divergence of the answers"),
    "top3_overlap": ("1", "overlap of the first three amino acids"),
    "rank_correlation": ("1", "Spearman's correlation of the 20 amino acids"),
}


def attributes(name: str) -> dict[str, str]:
    """Of a quantity: "units", "long_name" and "source", as far as they are known."""
    units, words, source = _ALONE.get(name, ("", "", ""))
    for change, (what, whose) in _CHANGES.items():
        measure = name.removeprefix(f"{change}_")
        if measure != name and measure in _MEASURES:
            units, of = _MEASURES[measure]
            words, source = f"{of}: {what}", whose
    found = {"units": units, "long_name": words, "source": source}
    return {key: text for key, text in found.items() if text}
