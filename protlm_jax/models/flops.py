"""Analytic cost of a model: floating-point operations per token.

`cost_analysis()` of a compiled program counts the body of a scan once, so it cannot serve for MFU.
"""

from __future__ import annotations

from protlm_jax.models.config import ModelConfig


def forward_flops_per_token(config: ModelConfig, length: int) -> int:
    """Operations of one forward pass per token of a row, a multiply-add counted as two.

    Counts matrix products alone, the convention behind published MFU: projections, attention
    scores and mixing over the whole row (causal attention is not halved), and the head. For an
    encoder-decoder a token stands for one position of the encoder and one of the decoder, whose
    rows have equal length here.

    Args:
        config: the architecture.
        length: tokens per row.
    """
    inner = config.num_heads * config.head_dim
    attention = 2 * 4 * config.d_model * inner + 2 * 2 * length * inner
    mlp = 2 * (3 if config.gated_mlp else 2) * config.d_model * config.d_ff
    width = config.embedding_width
    head = 2 * width * config.vocab_size
    if config.family in ("bert", "albert"):
        head += 2 * config.d_model * width
    if config.embedding_size:
        head += 2 * width * config.d_model
    encoder = config.num_layers * (attention + mlp)
    decoder = config.num_decoder_layers * (2 * attention + mlp)
    return encoder + decoder + head


def training_flops_per_token(config: ModelConfig, length: int) -> int:
    """Forward and backward: three times the forward pass. Recomputation does not count."""
    return 3 * forward_flops_per_token(config, length)
