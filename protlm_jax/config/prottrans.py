"""What the published runs of ProtTrans (Elnaggar et al. 2021) share; the runs are in configs/.

Where all of them differ from the paper:
- Rows are packed: several proteins share one, none sees another, and none is padded. The paper's
  rows held one protein or a pair, so an update sees more proteins than the paper's;
  `--config.data.pack=False` gives its rows.
- One protein in ten thousand is held out, by a hash of its sequence. The paper kept no split.
- Longer proteins give another random piece in each epoch; the paper cut them.
- Matrix products in bfloat16 (`--config.model.dtype=float32` for the paper's precision on TPUs),
  and activations computed again in the backward pass (`--config.model.remat=none`).
- Meshes are ours. Each recipe was compiled ahead of time for the pod of its paper and fits: see
  docs/pods.md. For other hardware set `--config.mesh.fsdp`, and ask `protlm plan`.
- Which releases of UniRef (2019) and BFD (2018) were used is not known.
- A FASTA file given as `data.fasta` is held in memory, at two bytes per residue while it is read:
  UniRef50 (14 billion residues) fits into a large host, UniRef100 (88) into few, BFD (393) into
  none. `protlm prepare --tokens` makes a folder of any of them for `data.prepared`, which is read
  from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from protlm_jax.config.files import Required
from protlm_jax.models.registry import preset


def recipe(
    model: str,
    corpus: str,
    *phases: dict[str, Any],
    overrides: Mapping[str, Any] | None = None,
    **sections: Any,
) -> ConfigDict:
    """A config for a published run, as the files in configs/ return it.

    `model` is a preset, of which the run changes `overrides`; `corpus` names what the user has to
    give a FASTA file of; without `phases` it is a plain run. `sections` are dicts.
    """
    architecture = preset(model).to_dict() | {"dtype": "bfloat16", "remat": "full"}
    data = {"fasta": a_fasta_of(corpus), "heldout_percent": 0.01}
    tree = {**sections, "model": architecture | dict(overrides or {})}
    tree["data"] = data | sections.get("data", {})
    tree["train"] = {"checkpoint_every": 1000, "keep_every": 50_000} | sections["train"]
    return ConfigDict({**tree, "phases": list(phases)} if phases else tree)


def a_fasta_of(corpus: str) -> Required:
    what = f"a FASTA file of {corpus}, which this recipe trains on"
    return Required(what, instead="prepared", short=corpus)


def prot_t5() -> dict[str, Any]:
    """Sections that all runs of ProtT5 share."""
    return {
        "objective": {"name": "denoising"},
        "data": {"task": "prott5", "length": 512},
        "optimizer": {"name": "adafactor", "weight_decay": 0.0},
        "schedule": {"name": "rsqrt", "learning_rate": 1.0, "warmup_steps": 10_000},
        # Of the sizes that fit, the smallest with room to spare for the larger model.
        "mesh": {"data": -1, "fsdp": 64},
    }


def after_bfd(
    model: str,
    variant: str,
    bfd: tuple[int, int],
    uniref50: tuple[int, int],
    bfd_model: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """ProtT5 on BFD and then on UniRef50; the variant "uniref50" is the second part alone.

    `bfd` and `uniref50` are steps and rows of each part; `bfd_model` are fields that differ in the
    first part.
    """
    first, second = ({"steps": steps, "batch_size": rows} for steps, rows in (bfd, uniref50))
    if variant == "uniref50":
        config = recipe(model, "UniRef50", **prot_t5(), train=second)
        config.init_from = Required("the model trained on BFD: a run or a Hugging Face folder")
        config.schedule.first_step = bfd[0]
        return config
    phases = (
        {
            "name": "bfd",
            "config": {
                "model": dict(bfd_model or {}),
                "data": {"fasta": a_fasta_of("BFD")},
                "train": first,
            },
        },
        {
            "name": "uniref50",
            "config": {"data": {"fasta": a_fasta_of("UniRef50")}, "train": second},
            "optimizer": "keep",
            "schedule": "continue",
        },
    )
    return recipe(model, "BFD", *phases, **prot_t5(), train={})
