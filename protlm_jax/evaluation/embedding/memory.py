"""How much memory a batch takes, estimated from the architecture.

Against what XLA reports for compiled programs of BERT, T5, XLNet and ESM-2 on CPU the estimate is
between 1 and 2 times as much.
"""

from __future__ import annotations

import os

import jax

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.loaded import LoadedModel

_BYTES = 4


def row_bytes(config: ModelConfig, length: int, layers: int) -> int:
    """Bytes of one row of a batch while it is computed, with results of `layers` layers."""
    # Arrays of all pairs that live at once; of the chunked backend a tile at a time.
    arrays = 3 if config.positions == "relative_xl" else 2
    pairs = arrays * config.num_heads * length**2
    if config.attention_backend == "chunked":
        pairs += 2 * config.num_heads * (min(length, 128) ** 2 - length**2)
    streams = length * (4 * config.d_model + config.d_ff)
    kept = config.num_layers + 1 if layers > 1 else 1
    # Results of the batch before are fetched while this one runs.
    results = length * config.d_model * (kept + 2 * layers)
    return _BYTES * (pairs + streams + results)


def shared_bytes(config: ModelConfig, length: int) -> int:
    """Bytes of a batch of any number of rows: T5's bias of all pairs."""
    return _BYTES * config.num_heads * length**2 * (config.positions == "relative_bias")


def device_memory() -> int:
    """Bytes of one device; of a CPU, all that the machine has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return int(limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def activation_budget(loaded: LoadedModel) -> int:
    """Bytes of one device that a batch may take; a CPU's memory is shared with other programs."""
    share = 0.25 if jax.default_backend() == "cpu" else 0.7
    return max(int(share * device_memory()) - parameter_bytes(loaded), 1 << 26)


def parameter_bytes(loaded: LoadedModel) -> int:
    """Bytes of the parameters on each device."""
    leaves = jax.tree.leaves(loaded.params)
    if loaded.mesh is not None:
        leaves = [leaf.addressable_shards[0].data for leaf in leaves]
    return sum(leaf.nbytes for leaf in leaves)


def longest_row(config: ModelConfig, budget: int, layers: int) -> int:
    """Tokens of the longest row that fits: 2^k or 3 x 2^k, so that similar machines agree."""
    length = 64
    while True:
        longer = length * 3 // 2 if length.bit_count() == 1 else length * 4 // 3
        if row_bytes(config, longer, layers) + shared_bytes(config, longer) > budget:
            return length
        length = longer


def size(count: int) -> str:
    """1234567 -> 1.2 MB."""
    number = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.1f} {unit}" if unit != "bytes" else f"{number:.0f} bytes"
        number /= 1000
    return f"{number:.1f} TB"
