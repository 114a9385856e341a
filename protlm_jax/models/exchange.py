"""What a family declares so that its models can be written and read as Hugging Face folders.

The conversion itself knows no family: it lives in `protlm_jax/huggingface/` and reads these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig

# Activations by our name; several names of theirs are one function.
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
ACTIVATION_FIELDS = {theirs: ours for ours, theirs in ACTIVATION_NAMES.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}


CONTACT_HEAD = "contact_head"


@dataclass(frozen=True)
class Key:
    """One parameter in both worlds.

    Attributes:
        ours: path in our tree, such as "encoder/attention/query/kernel".
        theirs: name in their state dict; with "{layer}" it stands for one tensor per layer, and
            our array has the layers as its first axis.
        layout: our axes and theirs, without the layers, as in "D H K -> (H K) D"; a 1 on their side
            is an axis of that size, and "(8 H)" on ours an axis that is split into 8 parts.
        part: (index, count) where theirs holds `count` parameters of ours of one shape, as a fused
            (query, key, value) does; P says where in theirs they follow each other, as in
            "D H K -> (P H K) D", and the table must have all of them.
        optional: whether some configs have no such parameter; theirs has no such tensor then.
    """

    ours: str
    theirs: str
    layout: str
    part: tuple[int, int] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Exchange:
    """How one family's models look in Hugging Face's format.

    Attributes:
        model_type: `model_type` of their config.json. Several families may share it: the folder's
            `architectures` tells them apart then.
        architecture: their class that holds everything we hold.
        task: their pipeline tag, for the model card.
        keys: the table; every parameter of ours stands in it once.
        to_config: our config as the fields of their config.json.
        from_config: the reverse; raises ProtlmError for what our family cannot express.
        imports: what the card's code imports from `transformers` beside AutoTokenizer.
        usage: the card's code: from `{title}`, a folder, and `batch`, the tokenizer's answer, it
            makes `model` and `hidden` [batch, length, d_model].
        copies: names under which a tensor of the table may be stored a second time (tied weights),
            mapped to the table's name. A copy that the table itself holds, for untied weights, may
            be absent, and is then taken from the other.
        aliases: further names of tensors of the table, mapped to the table's name; a "*" stands for
            anything. Tensors that are one by their aliases must be equal.
        defaults: tensors of the table that a folder need not hold, computed from our config then.
        unused: names of tensors that our model has no use for, mapped to the reason; a "*" stands
            for anything.
        constants: tensors that their files hold and that no parameter of ours stands for, computed
            from our config; a file that holds other values is refused, unless `unused` names it.
        closing_type: of the last special token, where the model takes `token_type_ids`.
        files: further files of an export by name, such as the code of a class that `transformers`
            does not have (its `auto_map` comes from `to_config`), as text made from our config.
        mark: a field that config.json has in this family and in none that shares its class.
        only_named: whether a folder is of this family only if it names the class; of folders of one
            type that name none, as old ones do, the other family is meant.
        also: further classes of theirs that hold no more of the model than `architecture`.
        heads: parameters at the top of our tree that their classes without a head do not have, and
            what they are called in messages. The rest is the body.
        row: tokens in a row that the model was made for, from their config.json, where no position
            table says it; None where it does not say.
        keeps_rare: whether the model's published usage gives U, Z, O and B their own tokens; users
            of ProtTrans's models map them to X.
    """

    model_type: str
    architecture: str
    task: str
    keys: tuple[Key, ...]
    to_config: Callable[[ModelConfig], dict[str, Any]]
    from_config: Callable[[Mapping[str, Any]], ModelConfig]
    imports: str
    usage: str
    copies: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Callable[[ModelConfig], np.ndarray]] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Callable[[ModelConfig], np.ndarray]] = field(default_factory=dict)
    closing_type: int = 0
    files: Mapping[str, Callable[[ModelConfig], str]] = field(default_factory=dict)
    mark: str = ""
    only_named: bool = False
    also: tuple[str, ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)
    keeps_rare: bool = False
    row: Callable[[Mapping[str, Any]], int | None] = lambda fields: None

    @property
    def body(self) -> str:
        """What the names of the body's tensors begin with, as "bert."; "" in T5."""
        first = {key.theirs.partition(".")[0] for key in self.keys if not self.is_head(key)}
        return f"{first.pop()}." if len(first) == 1 else ""

    def is_head(self, key: Key) -> bool:
        """Whether a parameter belongs to a head."""
        return key.ours.partition("/")[0] in self.heads

    @property
    def loads_as(self) -> str:
        """The class of `transformers` that makes a model of the folder."""
        return self.imports if self.files else self.architecture

    @property
    def trust(self) -> dict[str, bool]:
        """What `from_pretrained` needs beside the folder: leave to run the code in it."""
        return {"trust_remote_code": True} if self.files else {}


@dataclass(frozen=True)
class Joint:
    """How a family whose model is several of theirs is written: each part as a folder of its own.

    Attributes:
        parts: name of the folder, and what makes the part, a config and parameters of a family
            that has an `Exchange`, from those of the whole.
        join_configs, join_params: the reverse, from the parts' configs and parameters by name;
            they raise ProtlmError for parts that are not of one model.
    """

    parts: Mapping[str, Callable[[ModelConfig, Any], tuple[ModelConfig, Any]]]
    join_configs: Callable[[Mapping[str, ModelConfig]], ModelConfig]
    join_params: Callable[[Mapping[str, Any]], Any]


def norm_keys(ours: str, theirs: str) -> tuple[Key, Key]:
    """A LayerNorm; `theirs` is the name of their module."""
    return (
        Key(f"{ours}/scale", f"{theirs}.weight", "D -> D"),
        Key(f"{ours}/bias", f"{theirs}.bias", "D -> D"),
    )


def linear_keys(ours: str, theirs: str, kernel: str, bias: str) -> tuple[Key, Key]:
    """A linear map with a bias, and the layout of both; `theirs` is the name of their module."""
    return (
        Key(f"{ours}/kernel", f"{theirs}.weight", kernel),
        Key(f"{ours}/bias", f"{theirs}.bias", bias),
    )


def required(fields: Mapping[str, Any], name: str) -> Any:
    """A field that their config.json must have."""
    if fields.get(name) is None:
        raise ProtlmError(f"{name!r} is missing; take config.json from where the weights came from")
    return fields[name]


def refuse_unless(fields: Mapping[str, Any], name: str, *allowed: Any) -> None:
    """Raises ProtlmError when a field is there with a value that our family cannot express."""
    if name in fields and fields[name] not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise ProtlmError(f"{name!r} is {fields[name]!r}; only models with {choices} can be read")


def activation_field(name: str) -> str:
    """Our name of their activation.

    Raises:
        ProtlmError: we have no such function.
    """
    if name not in ACTIVATION_FIELDS:
        raise ProtlmError(
            f"activation {name!r} is not supported; only {', '.join(ACTIVATION_FIELDS)} are"
        )
    return ACTIVATION_FIELDS[name]
