"""ProGen2 in PyTorch (Nijkamp et al. 2023), made of the CodeGen classes of transformers.

An export of protlm_jax carries this file, because transformers has no class for ProGen2:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    logits = model(**tokenizer("MKTAYIAKQR", return_tensors="pt")).logits

CodeGen is the same network, but for the order of the rows of its fused projection: 4 groups of
heads, where ProGen2's files have 8. The tensors keep the names and the order of those files.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CodeGenConfig, CodeGenForCausalLM, CodeGenModel

GROUPS_THERE = 4  # that CodeGen's attention reads
GROUPS_HERE = 8


class ProGenConfig(CodeGenConfig):
    """Fields as in CodeGenConfig."""

    model_type = "progen"


class GroupedProjection(nn.Linear):
    """Queries, values and keys of 8 groups of heads, handed on as those of 4."""

    def forward(self, x: Tensor) -> Tensor:
        fused = super().forward(x).unflatten(-1, (GROUPS_THERE, GROUPS_HERE // GROUPS_THERE, 3, -1))
        return fused.transpose(-3, -2).flatten(-4)


class ProGenModel(CodeGenModel):
    """The blocks: `last_hidden_state` [batch, length, n_embd] after the final norm."""

    config_class = ProGenConfig

    def __init__(self, config: ProGenConfig) -> None:
        super().__init__(config)
        for block in self.h:
            block.attn.qkv_proj = GroupedProjection(config.n_embd, 3 * config.n_embd, bias=False)
        self.post_init()


class ProGenForCausalLM(CodeGenForCausalLM):
    """The blocks and their output: `logits` [batch, length, vocab_size] of the next token."""

    config_class = ProGenConfig

    def __init__(self, config: ProGenConfig) -> None:
        super(CodeGenForCausalLM, self).__init__(config)
        self.transformer = ProGenModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        self.post_init()
