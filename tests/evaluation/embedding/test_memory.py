"""The estimate of memory against what XLA plans to use."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from protlm_jax import models
from protlm_jax.evaluation.embedding import memory
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.families.xlnet import xlnet_config

SIZES = {"d_model": 64, "num_layers": 8, "num_heads": 4, "head_dim": 16, "d_ff": 256}


@pytest.mark.parametrize(
    "config",
    [
        bert_config(**SIZES, max_positions=512),
        t5_config(**SIZES, num_decoder_layers=1),
        xlnet_config(**SIZES),
    ],
    ids=lambda config: config.family,
)
def test_close_to_what_is_compiled(config: ModelConfig) -> None:
    rows, length = 2, 384
    model = models.build(config)
    side = "encoder_" if config.num_decoder_layers else ""
    ids = jax.ShapeDtypeStruct((rows, length), np.int32)
    batch = {f"{side}{name}": ids for name in ("input_tokens", "segment_ids", "positions")}
    run = jax.jit(lambda p, b: model.apply({"params": p}, b, method="hidden"))
    planned = run.lower(models.abstract_params(model), batch).compile().memory_analysis()
    found = rows * memory.row_bytes(config, length, 1)
    found += memory.shared_bytes(config, length)
    assert 1.0 <= found / (planned.temp_size_in_bytes + planned.output_size_in_bytes) <= 2.0


def test_the_longest_row_fits_and_the_next_does_not() -> None:
    config = t5_config(**SIZES, num_decoder_layers=1)

    def needed(length: int) -> int:
        each = memory.row_bytes(config, length, 2)
        return each + memory.shared_bytes(config, length)

    length = memory.longest_row(config, 10**9, 2)
    assert needed(length) <= 10**9 < needed(length * 3 // 2)


def test_sizes_for_people() -> None:
    assert [memory.size(n) for n in (12, 1_234_567, 2 * 10**15)] == [
        "12 bytes", "1.2 MB", "2000.0 TB",
    ]  # fmt: skip
