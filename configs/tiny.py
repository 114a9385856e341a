"""Small models that learn something real on a laptop: `bert` (the quickstart) and `t5`.

    protlm train --config configs/tiny.py:bert --workdir runs/bert

Trains on the bundled proteins (20,000 from Swiss-Prot 2014). Hardware: two CPU cores.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "bert") -> ConfigDict:
    """Returns the config of `bert` or `t5`."""
    if variant not in ("bert", "t5"):
        raise ValueError(f"configs/tiny.py has the variants bert and t5, not {variant!r}")
    config = ConfigDict()
    config.model = bert_model() if variant == "bert" else t5_model()
    config.objective = ConfigDict({"name": "masked" if variant == "bert" else "denoising"})
    config.data = ConfigDict(
        {
            # Tokens per row: 512 as in ProtBert's first phase, whole proteins.
            "length": 512 if variant == "bert" else 256,
            "task": "tokens" if variant == "bert" else "prott5",
            "heldout_percent": 2.0,  # about 400 proteins, by a hash of the sequence
        }
    )
    config.optimizer = ConfigDict(
        {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "b2": 0.98}
    )
    config.schedule = ConfigDict({"name": "cosine", "learning_rate": 1.5e-3, "warmup_steps": 100})
    config.train = ConfigDict(
        {
            "steps": 1400 if variant == "bert" else 900,
            "batch_size": 8,  # rows
            "log_every": 20,
            "evaluate_every": 200,
            "evaluate_batches": 4,
            "checkpoint_every": 100,
        }
    )
    return config


def bert_model() -> ConfigDict:
    """ProtBert's architecture, 4 layers of width 96; few heads, which is what costs on CPU."""
    return ConfigDict(
        {
            "family": "bert",
            "vocabulary": "prot_bert",
            "vocab_size": 30,
            "d_model": 96,
            "num_layers": 4,
            "num_heads": 2,
            "head_dim": 48,
            "d_ff": 384,
            "norm": "layer_norm",
            "norm_placement": "post",
            "norm_eps": 1e-12,
            "activation": "gelu",
            "positions": "learned",
            "max_positions": 512,
            "position_init": "sinusoidal",  # a run this short has no time to learn neighbourhood
            "type_vocab_size": 2,
            "initializer_range": 0.05,  # ProtBert's 0.02 suits a width of 1024
        }
    )


def t5_model() -> ConfigDict:
    """ProtT5's architecture, 3 + 3 layers of width 96."""
    return ConfigDict(
        {
            "family": "t5",
            "vocabulary": "prot_t5",
            "vocab_size": 128,
            "d_model": 96,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 2,
            "head_dim": 48,
            "d_ff": 384,
            "norm": "rms_norm",
            "norm_placement": "pre",
            "norm_eps": 1e-6,
            "activation": "relu",
            "use_bias": False,
            "positions": "relative_bias",
            "relative_buckets": 32,
            "relative_max_distance": 128,
            "attention_scale": False,
            "scale_tied_logits": True,
            "initializer_range": 1.0,
        }
    )
