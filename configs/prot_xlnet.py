"""ProtXLNet on UniRef100: residues in a random order of prediction, rows of 512 tokens.

    protlm prepare --dataset uniref100 --release 2024_01 --input uniref100.fasta.gz \\
        --output data/uniref100 --tokens
    protlm train --config configs/prot_xlnet.py --workdir runs/prot_xlnet \\
        --config.data.prepared=data/uniref100

Hardware of the paper: one TPU pod v3-512. Seen: 847,000 x 1,024 rows, 0.87 billion sequences, 0.44
trillion tokens with padding.

Confirmed by the size of the released file: 30 layers, width 1024. From notes on the paper: steps,
rows, a warmup of 20,000 steps. From memory: Adam with rate 0.00001 (in the notes the rates of
ALBERT and XLNet are most likely exchanged), dropout 0.1, gradients clipped at 0.25, and 37 tokens,
of which ours has 30.

Not known: the decay of the rate and of the weights (here those of XLNet's own code: linear to 0,
none), and whether segments remembered each other: the released config has no memory, and so have
ours none. What is common to all recipes: `protlm_jax/config/prottrans.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the run."""
    return recipe(
        "prot_xlnet",
        "UniRef100",
        objective={"name": "permutation"},
        data={"length": 512},
        optimizer={"name": "adamw", "weight_decay": 0.0, "clip_norm": 0.25},
        schedule={"name": "linear", "learning_rate": 1e-5, "warmup_steps": 20_000},
        train={"steps": 847_000, "batch_size": 1024},
    )
