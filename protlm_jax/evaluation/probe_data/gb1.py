"""Fitness of 8,733 variants of protein G's domain B1, changed at four sites, as FLIP splits them.

Train and test differ in kind: by the number of substitutions (one, two or three against the rest),
by fitness (low against high), or not at all (sampled).
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from protlm_jax import bundled
from protlm_jax.data.tables import read_table
from protlm_jax.evaluation.probe_data.base import Benchmark, LabelledProtein, Target, View

SPLITS = {
    "gb1_one_vs_rest": "GB1, one substitution against the rest",
    "gb1_two_vs_rest": "GB1, two substitutions against the rest",
    "gb1_three_vs_rest": "GB1, three substitutions against the rest",
    "gb1_low_vs_high": "GB1, low against high fitness",
    "gb1_sampled": "GB1, sampled at random",
}
SITES = (39, 40, 41, 54)  # counted from 1, in FLIP's construct, which goes on after the domain
PARENT = (
    "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTELEVLFQGPLDPNSMATYEVLCEVARKLGTDDREVVL"
    "FLLNVFIPQPTLAQLIGALRALKEEGRLTFPLLAECLFRAGRRDLLRDLLHLDPRFLERHLAGTMSYFSPYQLTVLHVDGELCARDIRSLIF"
    "LSKDTIGSRSTPQTFLHWVYCMENLDLLGPTDVDALMSMLRSLSRVDLQRQVQTLMGLHLSGPSHSQHYRHTPLEHHHHHH"
)


def load(name: str) -> Benchmark:
    """One of `SPLITS`; nothing is read yet."""
    return Benchmark(
        name=name,
        title=SPLITS[name],
        level="protein",
        targets=(Target("fitness", "number"),),
        splits={s: partial(_split, name, s) for s in ("train", "valid", "test")},
        views={"test": View("test", "test")},
        licence="FLIP: AFL-3.0, raw data CC BY 4.0",
        source="Wu et al. 2016, doi:10.7554/eLife.16965 (measurements); Dallago et al. 2021 (FLIP)",
        notes=(
            "All variants share 261 of 265 residues, which are embedded with them; the score is a "
            "rank correlation over variants.",
        ),
    )


@cache
def _rows() -> list[dict[str, str]]:
    return read_table(bundled.path("gb1")).rows


@cache
def _split(name: str, split: str) -> list[LabelledProtein]:
    column = name.removeprefix("gb1_")
    return [_variant(row) for row in _rows() if row[column] == split]


def _variant(row: dict[str, str]) -> LabelledProtein:
    sequence = list(PARENT)
    for site, residue in zip(SITES, row["sites"], strict=True):
        sequence[site - 1] = residue
    labels = {"fitness": np.array(float(row["fitness"]), np.float32)}
    return LabelledProtein(row["sites"], "".join(sequence), labels)
