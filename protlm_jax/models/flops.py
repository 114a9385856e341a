"""Analytic cost of a model: floating-point operations per token.

`cost_analysis()` of a compiled program counts the body of a scan once, so it cannot serve for MFU.
"""

from __future__ import annotations

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.registry import family_of


def forward_flops_per_token(config: ModelConfig, length: int, queries: int = 0) -> int:
    """Operations of one forward pass per token of a row, a multiply-add counted as two.

    Counts matrix products alone, the convention behind published MFU: projections, attention
    scores and mixing over the whole row (causal attention is not halved), and the head. For an
    encoder-decoder a token stands for one position of the encoder and one of the decoder, whose
    rows have equal length here; for a joint ELECTRA it passes through both models. A memory is
    counted as full. What relative attention makes of each distance is made once for all rows of a
    batch, and not counted.

    Args:
        config: the architecture.
        length: tokens per row.
        queries: positions per row that a second stream asks for (XLNet in training), and which
            then are the ones that the head reads.
    """
    family = family_of(config)
    return sum(_one_model(part, length, queries) for part in family.models_in(config))


def _one_model(config: ModelConfig, length: int, queries: int) -> int:
    module = family_of(config).module
    head, inner = module.head_flops(config), config.num_heads * config.head_dim
    keys = length + config.memory_length
    scores = 2 * 2 * keys * inner
    if config.positions == "relative_xl":  # a score for each distance too
        scores += 2 * (keys if module.causal else keys + length) * inner
    # Queries and outputs of the row; keys and values of its memory too.
    attention = 2 * 2 * config.d_model * inner * (length + keys) // length + scores
    mlp = 2 * (3 if config.gated_mlp else 2) * config.d_model * config.d_ff
    encoder = config.num_layers * (attention + mlp)
    decoder = config.num_decoder_layers * (2 * attention + mlp)
    projection = 2 * config.embedding_size * config.d_model
    if not queries:
        return projection + encoder + decoder + head
    query = config.num_layers * (2 * 2 * config.d_model * inner + scores + mlp) + head
    return encoder + query * queries // length


def training_flops_per_token(config: ModelConfig, length: int, queries: int = 0) -> int:
    """Forward and backward: three times the forward pass. Recomputation does not count."""
    return 3 * forward_flops_per_token(config, length, queries)
