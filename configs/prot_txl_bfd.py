"""ProtTXL-BFD: Transformer-XL on the 2.1 billion proteins of BFD, with a memory of 512 tokens.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm train --config configs/prot_txl_bfd.py --workdir runs/prot_txl_bfd \\
        --config.data.prepared=data/bfd

Hardware of the paper: 5,616 V100 of Summit, 936 nodes of 6, 8 rows on each GPU, float16:
`--config.model.dtype=float16` does the same, with a dynamic loss scale, where there is no bfloat16.
Seen: 40,700 x 45,056 rows, 1.8 billion sequences, 0.94 trillion tokens. The paper's 44,928 rows do
not divide over the 1,024 cores of a TPU v3, for which this was compiled: 44 on each, 11 at a time.

The model was never released: nothing can be compared with it. From notes on the paper: 562 million
parameters, steps, LAMB with rate 0.0005, a warmup of 13,600 steps. From memory: every size of the
architecture (a head size of 128 is what gives 562 million), the memory, dropout 0.15, no weight
decay, and gradients clipped at 0.25.

Not known: as in `configs/prot_txl_uniref100.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the run."""
    return recipe(
        "prot_txl_bfd",
        "BFD",
        objective={"name": "causal"},
        data={"length": 512, "task": "stream"},
        optimizer={"name": "lamb", "weight_decay": 0.0, "clip_norm": 0.25},
        schedule={"name": "cosine", "learning_rate": 5e-4, "warmup_steps": 13_600},
        mesh={"data": -1, "fsdp": 8},
        # A saved memory would be a checkpoint of tens of megabytes for each row.
        train={"steps": 40_700, "batch_size": 45_056, "accumulate": 4, "carry": "reset"},
    )
