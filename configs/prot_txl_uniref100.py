"""ProtTXL on UniRef100: the next residue, with a memory of the 512 tokens before the row.

    protlm prepare --dataset uniref100 --release 2024_01 --input uniref100.fasta.gz \\
        --output data/uniref100 --tokens
    protlm train --config configs/prot_txl_uniref100.py --workdir runs/prot_txl \\
        --config.data.prepared=data/uniref100

Hardware of the paper: 1,024 V100 of Summit, float16: `--config.model.dtype=float16` does the same,
with a dynamic loss scale, where there is no bfloat16. Seen: 31,300 x 22,528 rows, 0.70 billion
sequences, 0.36 trillion tokens.

The model was never released: nothing can be compared with it. From notes on the paper: steps, 22k
rows (22,528 divide over 1,024 devices), LAMB with rate 0.002, a warmup of 5,500 steps. From memory:
every size of the architecture, the memory, dropout 0.15, no weight decay, and gradients clipped at
0.25.

Not known: the decay of the rate; cosine is the default of Transformer-XL's own code, again from
memory. What is common to all recipes: `protlm_jax/config/prottrans.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the run."""
    return recipe(
        "prot_txl",
        "UniRef100",
        objective={"name": "causal"},
        data={"length": 512, "task": "stream"},
        optimizer={"name": "lamb", "weight_decay": 0.0, "clip_norm": 0.25},
        schedule={"name": "cosine", "learning_rate": 2e-3, "warmup_steps": 5500},
        mesh={"data": -1, "fsdp": 8},
        # A saved memory would be a checkpoint of tens of megabytes for each row.
        train={"steps": 31_300, "batch_size": 22_528, "accumulate": 2, "carry": "reset"},
    )
