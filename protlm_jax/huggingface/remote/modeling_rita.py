"""RITA in PyTorch (Hesslow et al. 2022), with the tensor names of the published files.

An export of protlm_jax carries this file, because transformers has no class for RITA:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    logits = model(**tokenizer("MKTAYIAKQR", return_tensors="pt")).logits

Attention is causal, so that padding on the right needs no mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class RITAConfig(PretrainedConfig):
    """Sizes of a RITA; the names are those of the published config.json."""

    model_type = "rita"

    def __init__(
        self,
        vocab_size: int = 26,
        d_model: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        d_feedforward: int | None = None,
        max_seq_len: int = 1024,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        **fields: Any,
    ) -> None:
        self.vocab_size, self.d_model = vocab_size, d_model
        self.num_layers, self.num_heads = num_layers, num_heads
        self.d_feedforward = d_feedforward or 4 * d_model
        self.max_seq_len, self.dropout = max_seq_len, dropout
        self.initializer_range = initializer_range
        super().__init__(**{"tie_word_embeddings": False, **fields})


class SelfAttention(nn.Module):
    """Causal attention with rotary positions over the whole head, in halves."""

    def __init__(self, config: RITAConfig) -> None:
        super().__init__()
        width = config.d_model
        self.heads = config.num_heads
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def split(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        def turn(t: Tensor) -> Tensor:
            first, second = t.chunk(2, dim=-1)
            return t * cos + torch.cat((-second, first), dim=-1) * sin

        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-LN block."""

    def __init__(self, config: RITAConfig) -> None:
        super().__init__()
        width, inner = config.d_model, config.d_feedforward
        self.self_attention = SelfAttention(config)
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        gelu = nn.GELU(approximate="tanh")
        self.mlp = nn.Sequential(nn.Linear(width, inner), gelu, nn.Linear(inner, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attention(self.attn_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class RITAModel(PreTrainedModel):
    """The blocks: `last_hidden_state` [batch, length, d_model] after the final norm."""

    config_class = RITAConfig
    base_model_prefix = "transformer"

    def __init__(self, config: RITAConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.final_norm = nn.LayerNorm(config.d_model)
        size = config.d_model // config.num_heads
        frequencies = 10_000.0 ** (-torch.arange(0, size, 2).float() / size)
        self.inv_freq = nn.Parameter(frequencies, requires_grad=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, **ignored: Any) -> BaseModelOutput:
        x = self.embedding(input_ids)
        places = torch.arange(input_ids.shape[1], device=x.device)
        angle = places[:, None] * self.inv_freq[None].float()
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return BaseModelOutput(last_hidden_state=self.final_norm(x))


class RITAModelForCausalLM(PreTrainedModel):
    """The blocks and their output: `logits` [batch, length, vocab_size] of the next token."""

    config_class = RITAConfig
    base_model_prefix = "transformer"

    def __init__(self, config: RITAConfig) -> None:
        super().__init__(config)
        self.transformer = RITAModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, **ignored: Any
    ) -> CausalLMOutput:
        logits = self.lm_head(self.transformer(input_ids).last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        return CausalLMOutput(loss=loss, logits=logits)


RITAForCausalLM = RITAModelForCausalLM
