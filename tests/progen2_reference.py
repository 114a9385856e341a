"""ProGen2's blocks on the published tensors, after the paper and GPT-J's description.

It knows nothing of our table of keys. Proteins come one at a time, without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")


def turned(x: Any, size: int) -> Any:
    """Rotates pairs (0, 1), (2, 3), ... of the first `size` entries of [L, H, K] by position."""
    x = x.clone()
    for pair in range(size // 2):
        angle = torch.arange(x.shape[0]) * 10_000.0 ** (-2 * pair / size)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., 2 * pair].clone(), x[..., 2 * pair + 1].clone()
        x[..., 2 * pair] = a * cos - b * sin
        x[..., 2 * pair + 1] = b * cos + a * sin
    return x


def attention(fused: Any, heads: int, rotary: int) -> Any:
    """Causal attention of one protein, from the fused projection [L, 3 D]."""
    length, width = fused.shape[0], fused.shape[1] // 3
    size = width // heads
    parts: dict[str, list[Any]] = {"q": [], "v": [], "k": []}
    for group in fused.chunk(8, dim=-1):  # of some heads each: their queries, values and keys
        for name, part in zip(parts, group.chunk(3, dim=-1), strict=True):
            parts[name].append(part.reshape(length, heads // 8, size))
    q, v, k = (torch.cat(part, dim=1) for part in parts.values())
    scores = torch.einsum("lhk,mhk->hlm", turned(q, rotary), turned(k, rotary)) / size**0.5
    later = torch.ones(length, length).triu(1).bool()
    weights = scores.masked_fill(later[None], -torch.inf).softmax(-1)
    return torch.einsum("hlm,mhk->lhk", weights, v).reshape(length, width)


class Blocks:
    """A ProGen2 block by block; streams are [L, D]."""

    def __init__(self, state: Mapping[str, Any], heads: int, rotary: int) -> None:
        self.state, self.heads, self.rotary = state, heads, rotary

    @property
    def number(self) -> int:
        return sum(name.endswith(".ln_1.weight") for name in self.state)

    def embed(self, ids: Any) -> Any:
        return self.state["transformer.wte.weight"][ids]

    def added(self, layer: int, h: Any) -> tuple[Any, Any]:
        """What attention and MLP add to a stream: both read it, and neither the other."""
        name = f"transformer.h.{layer}"
        x = self._norm(h, f"{name}.ln_1")
        mixed = attention(self._linear(x, f"{name}.attn.qkv_proj"), self.heads, self.rotary)
        inner = torch.nn.functional.gelu(self._linear(x, f"{name}.mlp.fc_in"), approximate="tanh")
        return self._linear(mixed, f"{name}.attn.out_proj"), self._linear(
            inner, f"{name}.mlp.fc_out"
        )

    def head(self, h: Any) -> Any:
        return self._linear(self._norm(h, "transformer.ln_f"), "lm_head")

    def _linear(self, x: Any, name: str) -> Any:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return torch.nn.functional.linear(x, weight, bias)

    def _norm(self, x: Any, name: str) -> Any:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
