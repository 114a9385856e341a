"""ProGen2, whose MLP never sees what attention adds: measurements against its blocks in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from depth_rows import measure_batch
from progen2_reference import Blocks, torch

from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.huggingface.convert import EXCHANGES, tensors

METRICS = ("contributions", "skips", "sublayer_skips", "local_effects")
LENGTHS = np.array([12, 7, 9])
REAL = np.arange(12)[None] < LENGTHS[:, None]
RNG = np.random.default_rng(5)


class Row:
    """One protein through the blocks, in float64; `target` is where its answers are read."""

    def __init__(self, blocks: Blocks, ids: np.ndarray, asked: np.ndarray, letters: Any) -> None:
        self.blocks, self.letters, self.number = blocks, list(letters), blocks.number
        self.target = torch.tensor(asked[1:].tolist() + [False])
        self.streams = [blocks.embed(torch.tensor(ids).long())]
        self.parts = []
        for layer in range(self.number):
            self.parts.append(blocks.added(layer, self.streams[-1]))
            self.streams.append(self.streams[-1] + sum(self.parts[-1]))

    def after(self, h: Any, order: list[int]) -> tuple[dict[int, Any], Any]:
        """What each of some layers adds, run from a stream on, and the last stream."""
        added = {}
        for layer in order:
            added[layer] = sum(self.blocks.added(layer, h))
            h = h + added[layer]
        return added, h

    def change(self, layer: int, added: Any) -> float:
        """||c - c'|| / ||c|| of a layer, summed over what is read."""
        clean = sum(self.parts[layer])
        ratio = (clean - added).norm(dim=-1) / clean.norm(dim=-1)
        return float(ratio[self.target].sum())

    def kl(self, final: Any) -> float:
        """KL(q || p) of the answer from another last stream, summed over what is read."""
        p, q = (
            self.blocks.head(h)[:, self.letters].log_softmax(-1) for h in (self.streams[-1], final)
        )
        return float((q.exp() * (q - p)).sum(-1)[self.target].sum())


@pytest.fixture(scope="module")
def measured() -> tuple[Any, list[Row]]:
    loaded = zoo.loaded("progen2")
    letters = np.asarray(loaded.vocabulary.amino_acid_ids)
    true = np.where(REAL, RNG.choice(letters, REAL.shape), 0).astype(np.int32)
    asked = REAL & (RNG.random(REAL.shape) < 0.4) & (np.arange(12) > 0)
    features = {
        "input_tokens": true,
        "segment_ids": REAL.astype(np.int32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (3, 1)),
    }
    protein = np.where(REAL, np.arange(3)[:, None], -1).astype(np.int32)
    batch = DepthBatch(features, true, asked, REAL, protein, [0, 1, 2])
    found = measure_batch(loaded, batch, "encoder", METRICS)
    state = {
        name: torch.tensor(x).double() for name, x in tensors(EXCHANGES["progen2"], loaded.params)
    }
    blocks = Blocks(state, loaded.config.num_heads, loaded.config.rotary_dim)
    rows = [
        Row(blocks, ids[:n], a[:n], letters.tolist())
        for ids, a, n in zip(true, asked, LENGTHS, strict=True)
    ]
    assert all(row.target.any() for row in rows)
    return found, rows


def same(stat: Any, place: Any, expected: list[float], name: str) -> None:
    np.testing.assert_allclose(stat.total[place][:3], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_both_sublayers_are_measured_against_the_stream_before_the_block(measured) -> None:
    found, rows = measured
    for part in range(3):
        for layer in range(2):
            ratios = []
            for row in rows:
                x = row.parts[layer][part - 1] if part else sum(row.parts[layer])
                ratio = x.norm(dim=-1) / row.streams[layer].norm(dim=-1)
                ratios.append(float(ratio[row.target].sum()))
            same(found["relative_contribution"], (part, layer), ratios, f"part {part}")


def test_what_is_left_out_is_missed_as_the_blocks_miss_it(measured) -> None:
    found, rows = measured
    for layer in range(2):
        later = list(range(layer + 1, 2))
        cases = [("skip", (), lambda row, s=layer: row.streams[s])]
        cases += [
            (
                "sublayer_skip",
                (part,),
                lambda row, p=part, s=layer: row.streams[s] + row.parts[s][1 - p],
            )
            for part in range(2)
        ]
        for prefix, place, edited in cases:
            runs = [row.after(edited(row), later) for row in rows]
            answers = [row.kl(final) for row, (_, final) in zip(rows, runs, strict=True)]
            same(found[f"{prefix}_kl"], (*place, layer), answers, prefix)
            for m in later:
                changes = [
                    row.change(m, added[m]) for row, (added, _) in zip(rows, runs, strict=True)
                ]
                same(found[f"{prefix}_effect"], (*place, layer, m), changes, prefix)
    local = [
        row.change(1, sum(row.blocks.added(1, row.streams[1] - sum(row.parts[0])))) for row in rows
    ]
    same(found["local_effect"], (0, 1), local, "local")
    assert min(local) > 0.01
