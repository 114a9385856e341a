"""Transformer-XL for proteins in PyTorch (Dai et al. 2019, arXiv:1901.02860), self-contained.

An export of protlm_jax carries this file, because transformers dropped its own class in version 5:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    output = model(input_ids)                    # output.logits[:, i] predicts token i + 1
    output = model(more_ids, mems=output.mems)   # the same proteins, continued

The tensors have the names of that class, so that `TransfoXLLMHeadModel` of transformers 4 reads the
folder too; but from 4.40 to 4.57 a mistake in its code stops it at the first call, and this file
serves there as well. Where it runs, start with `mems=[torch.zeros(0, batch, d_model)] * n_layer`:
without, it attends to a memory full of zeros, which these models never saw. It returns
log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class ProtTXLConfig(PretrainedConfig):
    """Fields as in transformers' TransfoXLConfig; those that only its adaptive softmax reads are
    accepted and have no effect."""

    model_type = "transfo-xl"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 29,
        d_model: int = 1024,
        n_layer: int = 30,
        n_head: int = 16,
        d_head: int = 64,
        d_inner: int = 4096,
        mem_len: int = 512,
        same_length: bool = False,
        clamp_len: int = 0,
        layer_norm_epsilon: float = 1e-5,
        dropout: float = 0.15,
        dropatt: float = 0.15,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.n_layer = n_layer
        self.n_head = n_head
        self.d_head = d_head
        self.d_inner = d_inner
        self.mem_len = mem_len
        self.same_length = same_length
        self.clamp_len = clamp_len
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout = dropout
        self.dropatt = dropatt
        super().__init__(**kwargs)


@dataclass
class ProtTXLOutput(ModelOutput):
    """What a forward pass gives.

    last_hidden_state: [batch, length, d_model].
    logits: [batch, length, vocab_size], of the next token; None from the model without a head.
    loss: mean cross-entropy of `labels`, where they were given.
    mems: per layer [memory, batch, d_model], for the next part of the same rows; None after a batch
        with padding.
    hidden_states: the stream before each layer and after the last, where they were asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Attention(nn.Module):
    """(q + u) . k for the content and (q + v) . (R W) for the distance, over one softmax."""

    def __init__(self, config: ProtTXLConfig):
        super().__init__()
        self.heads, self.size = config.n_head, config.d_head
        inner = config.n_head * config.d_head
        self.qkv_net = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.r_net = nn.Linear(config.d_model, inner, bias=False)
        self.o_net = nn.Linear(inner, config.d_model, bias=False)
        self.r_w_bias = nn.Parameter(torch.zeros(config.n_head, config.d_head))
        self.r_r_bias = nn.Parameter(torch.zeros(config.n_head, config.d_head))
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.dropout)
        self.drop_weights = nn.Dropout(config.dropatt)

    def forward(self, h: Tensor, past: Tensor, sinusoids: Tensor, seen: Tensor) -> Tensor:
        """h [B, L, D], past [B, P, D], sinusoids [P + L, D] from the farthest distance to 0, and
        seen [B or 1, 1, L, P + L] bool -> [B, L, D]."""
        batch, length, _ = h.shape
        query, key, value = (
            t.unflatten(-1, (self.heads, self.size)).transpose(1, 2)
            for t in self.qkv_net(torch.cat([past, h], dim=1)).chunk(3, dim=-1)
        )
        query = query[:, :, -length:]
        distance = self.r_net(sinusoids).unflatten(-1, (self.heads, self.size)).transpose(0, 1)
        content = (query + self.r_w_bias[:, None]) @ key.transpose(-1, -2)
        by_distance = (query + self.r_r_bias[:, None]) @ distance.transpose(-1, -2)
        # Query i sees key j at a distance that stands in column (length - 1 - i) + j; keys after
        # the query have none, and are not seen.
        keys = key.shape[2]
        steps = torch.arange(keys, device=h.device)
        column = (steps[None, :] + (length - 1 - steps[:length])[:, None]).clamp(max=keys - 1)
        by_distance = by_distance.gather(-1, column.expand(batch, self.heads, length, keys))
        scores = (content + by_distance) * self.size**-0.5
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = self.drop_weights(scores.softmax(-1))
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return self.layer_norm(h + self.drop(self.o_net(mixed)))


class FeedForward(nn.Module):
    """Two projections with a ReLU between them."""

    def __init__(self, config: ProtTXLConfig):
        super().__init__()
        self.CoreNet = nn.Sequential(
            nn.Linear(config.d_model, config.d_inner),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_inner, config.d_model),
            nn.Dropout(config.dropout),
        )
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer_norm(h + self.CoreNet(h))


class Layer(nn.Module):
    def __init__(self, config: ProtTXLConfig):
        super().__init__()
        self.dec_attn = Attention(config)
        self.pos_ff = FeedForward(config)


class Named(nn.Module):
    """Submodules under the names that TransfoXL gives them."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Sinusoids(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        rates = 10_000.0 ** (-torch.arange(0.0, width, 2.0) / width)
        self.register_buffer("inv_freq", rates)

    def forward(self, distances: Tensor) -> Tensor:
        angle = torch.outer(distances.to(self.inv_freq.dtype), self.inv_freq)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class OutputBias(nn.Module):
    """The bias of the output; its weight is the embedding."""

    def __init__(self, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))


class ProtTXLPreTrainedModel(PreTrainedModel):
    config_class = ProtTXLConfig
    base_model_prefix = "transformer"


class ProtTXLModel(ProtTXLPreTrainedModel):
    """The model without its head."""

    def __init__(self, config: ProtTXLConfig):
        super().__init__(config)
        table = nn.Embedding(config.vocab_size, config.d_model)
        self.word_emb = Named(emb_layers=nn.ModuleList([table]))
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.n_layer)])
        self.pos_emb = Sinusoids(config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_emb.emb_layers[0]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_emb.emb_layers[0] = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mems: list[Tensor] | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> ProtTXLOutput:
        """Args:
        input_ids: [batch, length].
        attention_mask: [batch, length], 0 where padding stands; not together with `mems`.
        mems: of the output of the same rows' earlier part.
        """
        h = self.drop(self.get_input_embeddings()(input_ids) * self.config.d_model**0.5)
        batch, length, width = h.shape
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        if attention_mask is not None and mems is not None:
            raise ValueError("rows with padding cannot continue others: drop mems, or the padding")
        if mems is None:
            mems = [h.new_zeros(0, batch, width)] * self.config.n_layer
        keys = mems[0].shape[0] + length
        place = torch.arange(keys, device=h.device)
        distance = place[-length:, None] - place[None, :]
        seen = distance >= 0
        if self.config.same_length:
            seen = seen & (distance < self.config.mem_len)
        seen = seen[None, None]
        if attention_mask is not None:
            own = attention_mask.bool()
            seen = seen & (own[:, None, None, :] == own[:, None, :, None])
        farthest_first = place.flip(0)
        if self.config.clamp_len > 0:
            farthest_first = farthest_first.clamp(max=self.config.clamp_len)
        sinusoids = self.pos_emb(farthest_first).to(h.dtype)
        streams = [h]
        for layer, past in zip(self.layers, mems, strict=True):
            h = layer.pos_ff(layer.dec_attn(h, past.transpose(0, 1), sinusoids, seen))
            streams.append(h)
        return ProtTXLOutput(
            last_hidden_state=self.drop(h),
            mems=self._remembered(mems, streams) if attention_mask is None else None,
            hidden_states=tuple(streams) if output_hidden_states else None,
        )

    def _remembered(self, mems: list[Tensor], streams: list[Tensor]) -> list[Tensor]:
        """The newest `mem_len` streams before each layer, old and new ones together."""
        kept = []
        for past, stream in zip(mems, streams, strict=False):
            whole = torch.cat([past, stream.detach().transpose(0, 1)])
            kept.append(whole[max(0, len(whole) - self.config.mem_len) :])
        return kept


class ProtTXLForCausalLM(ProtTXLPreTrainedModel):
    """The model with its head: the embedding once more, and a bias."""

    def __init__(self, config: ProtTXLConfig):
        super().__init__(config)
        self.transformer = ProtTXLModel(config)
        bias = OutputBias(config.vocab_size)
        self.crit = Named(out_layers=nn.ModuleList([bias]))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mems: list[Tensor] | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ProtTXLOutput:
        """Args:
        labels: [batch, length], the input ids, -100 where no loss is wanted. They are shifted here.
        """
        output = self.transformer(input_ids, attention_mask=attention_mask, mems=mems, **kwargs)
        weight = self.get_input_embeddings().weight
        logits = functional.linear(output.last_hidden_state, weight, self.crit.out_layers[0].bias)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return ProtTXLOutput(
            loss=loss,
            logits=logits,
            last_hidden_state=output.last_hidden_state,
            mems=output.mems,
            hidden_states=output.hidden_states,
        )
