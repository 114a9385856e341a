"""The other side of `gpu_train.py`: transformers + torch, with SDPA and `torch.compile`.

Parameters and optimizer are float32, and `torch.autocast` computes in bfloat16. On a CPU nothing is
compiled: that takes longer than what there is to measure.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models import ModelConfig
from protlm_jax.vocabularies import get_vocabulary

Batch = dict[str, np.ndarray]


class Peer:
    """A model of transformers with its optimizer.

    Args:
        config: ours; theirs has the same sizes, and random weights.
        optimizer: "adamw" or "adafactor".
        remat: "none", or "full" for gradient checkpointing.
    """

    def __init__(self, config: ModelConfig, optimizer: str, remat: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vocabulary = get_vocabulary(config.vocabulary)
        exchange = EXCHANGES[config.family]
        theirs = transformers.AutoConfig.for_model(
            exchange.model_type, **exchange.to_config(config)
        )
        torch.manual_seed(0)
        with self.device:
            model = getattr(transformers, exchange.architecture)._from_config(
                theirs, attn_implementation="sdpa"
            )
        if remat == "full":
            model.gradient_checkpointing_enable()
        on_gpu = self.device.type == "cuda"
        if optimizer == "adamw":
            self.optimizer: Any = torch.optim.AdamW(model.parameters(), 1e-4, fused=on_gpu)
        else:
            self.optimizer = torch.optim.Adafactor(model.parameters())
        self.model = model
        self.forward = torch.compile(model) if on_gpu else model

    def run(self, batches: Sequence[Batch], *, masked: bool) -> Callable[[int], float]:
        """What does so many steps, waits until they are done, and returns the last loss.

        Args:
            batches: gone through in turn.
            masked: whether the model is told which tokens are padding.
        """
        features = [self._features(batch, masked) for batch in batches]

        def run(count: int) -> float:
            for index in range(count):
                shown = self._corrupted(features[index % len(features)])
                with torch.autocast(self.device.type, torch.bfloat16):
                    loss = self.forward(**shown).loss
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            return float(loss.detach())

        return run

    def _features(self, batch: Batch, masked: bool) -> dict[str, torch.Tensor]:
        """A batch as transformers takes it; "residues" are tokens that may be hidden."""
        side = "encoder_" if "encoder_segment_ids" in batch else ""
        features = {"input_ids": self._put(batch[f"{side}input_tokens"])}
        if masked:
            features["attention_mask"] = self._put(batch[f"{side}segment_ids"] > 0)
        if side:  # hidden on the way here
            asked = self._put(batch["decoder_loss_weights"]) > 0
            targets = self._put(batch["decoder_target_tokens"])
            return {**features, "labels": torch.where(asked, targets, -100)}
        ids = self._put(self.vocabulary.residue_ids)
        return {**features, "residues": torch.isin(features["input_ids"], ids)}

    def _corrupted(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Masked language modelling: of 15 % of the residues 80, 10 and 10 %, drawn anew."""
        if "residues" not in features:
            return features
        features = dict(features)
        residues, ids = features.pop("residues"), features["input_ids"]
        chosen = residues & (torch.rand(ids.shape, device=self.device) < 0.15)
        how = torch.rand(ids.shape, device=self.device)
        amino_acids = self._put(self.vocabulary.amino_acid_ids)
        other = amino_acids[torch.randint(0, 20, ids.shape, device=self.device)]
        shown = torch.where(chosen & (how < 0.9), other, ids)
        features["input_ids"] = torch.where(chosen & (how < 0.8), self.vocabulary.hiding_id, shown)
        return {**features, "labels": torch.where(chosen, ids, -100)}

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.long, device=self.device)


def gpu_is_there(share: float) -> bool:
    """Whether torch sees a GPU, of whose memory it then takes no more than this share."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)
    return torch.cuda.is_available()


def forget() -> None:
    """Gives the memory of models that nobody holds back to the device."""
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def peak_bytes() -> int:
    """The most that was allocated on the GPU; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
