"""What a family declares so that its models can be written and read as Hugging Face folders.

The conversion itself knows no family: it lives in `protlm_jax/huggingface/` and reads these tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.vocabularies import get_vocabulary

# Activations by our name; several names of theirs are one function.
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
ACTIVATION_FIELDS = {theirs: ours for ours, theirs in ACTIVATION_NAMES.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}

CONTACT_HEAD = "contact_head"

LARGEST = 2**31 - 1
REQUIRED: Any = object()

_NO_T5 = "not-of-a-T5-model"

_REMOTE = Path(__file__).parents[1] / "huggingface" / "remote"
_TYPES = {field.name: field.type for field in dataclasses.fields(ModelConfig)}


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
class Field:
    """One field of `ModelConfig` in their config.json.

    Attributes:
        ours: its name; the type of the field is that of the value.
        theirs: names in config.json, separated by spaces: the first that is there is read, and all
            are written.
        default: our value where none of them is there: a value, or a function of the fields that
            were read before it; REQUIRED refuses the folder.
        also: further names, which are written and never read.
        least: the smallest whole number.
    """

    ours: str
    theirs: str
    default: Any = REQUIRED
    also: tuple[str, ...] = ()
    least: int = 1

    def written(self, config: ModelConfig) -> dict[str, Any]:
        """Their fields."""
        value = getattr(config, self.ours)
        value = ACTIVATION_NAMES[value] if self.ours == "activation" else value
        return dict.fromkeys((*self.theirs.split(), *self.also), value)

    def read(self, fields: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
        """Our value.

        Raises:
            ProtlmError: it is missing, of another type or out of range.
        """
        names, kind = self.theirs.split(), str(_TYPES[self.ours])
        name = next((name for name in names if fields.get(name) is not None), names[-1])
        if fields.get(name) is None and self.default is not REQUIRED:
            return self.default(known) if callable(self.default) else self.default
        value = typed(fields, name, kind, self.least)
        return activation_field(value) if self.ours == "activation" else value


def _nothing(*arguments: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Exchange:
    """How one family's models look in Hugging Face's format.

    Attributes:
        model_type: of their config.json. Families that share one are told apart by `architectures`.
        architecture: their class that holds everything we hold.
        task: their pipeline tag, for the model card.
        keys: the table of parameters; every parameter of ours stands in it once.
        make: the family's config, from the values of some fields.
        fields: the table of fields; without `head_dim` in it that is the width over the heads.
        imports: what the card's code imports from `transformers` beside AutoTokenizer.
        usage: the card's code where the standard one does not do: from `{title}`, a folder, and
            `batch`, the tokenizer's answer, it makes `model` and `hidden` [batch, length, d_model].
        fixed: what config.json says of every model of the family: the first value is written, and
            a folder with none of the values is refused.
        write: further fields of theirs, from our config.
        read: further fields of ours, from theirs and from what `fields` has read; raises
            ProtlmError for what our family cannot express.
        copies: names under which a tensor may be stored a second time (tied weights), and the
            table's name. A copy in the table, for untied weights, may be absent: it is then taken
            from the other.
        aliases: further names of tensors of the table ("*" stands for anything), and the table's.
            Tensors that are one by their aliases must be equal.
        defaults: tensors of the table that a folder need not hold, from our config.
        unused: names of tensors that our model has no use for ("*" as above), and the reason.
        constants: tensors of their files that no parameter of ours stands for, from our config;
            a file that holds other values is refused.
        closing_type: of the last special token, where the model takes `token_type_ids`; None where
            it does not.
        code: name in `huggingface/remote` of a module with the class that `transformers` lacks, and
            the prefix of its classes (`Config`, `Model`, `ForCausalLM`).
        files: further files of an export by name, as text made from our config.
        mark: a field that config.json has in this family and in none that shares its class.
        only_named: whether a folder must name the class to be of this family.
        also: further classes of theirs that hold no more of the model than `architecture`.
        heads: parameters at the top of our tree that their classes without a head do not have, and
            what they are called in messages. The rest is the body.
        row: the field with the tokens in a row that the model was made for, where no position table
            says it, and how many of them hold no token.
        around: roles of the special tokens that their tokenizer class puts before and after a
            protein, where tokenizer.json does not say it.
        ends: tokens of a protein's two ends, which users of these models write themselves.
        unspaced: whether the model reads text without spaces, where longer pieces are its tokens.
        keeps_rare: whether the published usage gives U, Z, O and B their own tokens, not X.
        esm_tokenizer: whether `EsmTokenizer` is their class, for vocabularies that it fits.
    """

    model_type: str
    architecture: str
    task: str
    keys: tuple[Key, ...]
    make: Callable[..., ModelConfig]
    fields: tuple[Field, ...]
    imports: str
    usage: str = ""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    write: Callable[[ModelConfig], dict[str, Any]] = _nothing
    read: Callable[[Mapping[str, Any], dict[str, Any]], dict[str, Any]] = _nothing
    copies: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Callable[[ModelConfig], np.ndarray]] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Callable[[ModelConfig], np.ndarray]] = field(default_factory=dict)
    closing_type: int | None = 0
    code: tuple[str, str] | None = None
    files: Mapping[str, Callable[[ModelConfig], str]] = field(default_factory=dict)
    mark: str = ""
    only_named: bool = False
    also: tuple[str, ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)
    row: tuple[str, int] | None = None
    around: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    ends: tuple[str, str] | None = None
    unspaced: bool = False
    keeps_rare: bool = False
    esm_tokenizer: bool = False

    def to_config(self, config: ModelConfig) -> dict[str, Any]:
        """Our config as the fields of their config.json."""
        vocabulary = get_vocabulary(config.vocabulary)
        fields: dict[str, Any] = {
            "pad_token_id": vocabulary.pad_id,
            "bos_token_id": next(iter(vocabulary.prefix_ids), None),
            "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        }
        if self.model_type != "t5":
            # Some tools open what they do not know as a T5 encoder, with new random weights; its
            # config refuses this value.
            fields["feed_forward_proj"] = _NO_T5
        for entry in self.fields:
            fields |= entry.written(config)
        fields |= {name: values[0] for name, values in self.fixed.items()}
        if self.code:
            module, prefix = self.code
            kinds = {"AutoConfig": "Config", "AutoModel": "Model"}
            kinds["AutoModelForCausalLM"] = "ForCausalLM"
            fields["auto_map"] = {auto: f"{module}.{prefix}{kind}" for auto, kind in kinds.items()}
        return fields | self.write(config)

    def from_config(self, fields: Mapping[str, Any]) -> ModelConfig:
        """The reverse.

        Raises:
            ProtlmError: a field is missing, is no value of its type, or says what our family cannot
                express.
        """
        for name, allowed in self.fixed.items():
            refuse_unless(fields, name, *allowed)
        known: dict[str, Any] = {}
        for entry in self.fields:
            known[entry.ours] = entry.read(fields, known)
        known.setdefault("head_dim", known["d_model"] // known["num_heads"])
        return self.make(**known | self.read(fields, known))

    def row_of(self, fields: Mapping[str, Any]) -> int | None:
        """Tokens in a row that the model was made for; None where their config.json has none."""
        if self.row is None or fields.get(self.row[0]) is None:
            return None
        return int(typed(fields, self.row[0], "int")) - self.row[1]

    def written_files(self, config: ModelConfig) -> dict[str, str]:
        """Further files of an export, by name."""
        files = {name: text(config) for name, text in self.files.items()}
        if self.code:
            files[f"{self.code[0]}.py"] = (_REMOTE / f"{self.code[0]}.py").read_text()
        return files

    def card_code(self, title: str) -> str:
        """The code of the model card, which loads the folder `title`."""
        answer = "over all tokens, at each residue"
        if self.task == "text-generation":
            answer = "logits[:, i] predicts token i + 1"
        trust = ", trust_remote_code=True" if self.code else ""
        standard = (
            f'model = {self.imports}.from_pretrained("{{title}}"{trust})\n'
            f"logits = model(**batch).logits  # {answer}\n"
            f"hidden = model.{self.body.rstrip('.')}(**batch).last_hidden_state"
        )
        return (self.usage or standard).format(title=title).strip()

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
        return self.imports if self.code else self.architecture

    @property
    def trust(self) -> dict[str, bool]:
        """What `from_pretrained` needs beside the folder: leave to run the code in it."""
        return {"trust_remote_code": True} if self.code else {}


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


def linear_keys(
    ours: str, theirs: str, kernel: str = "D F -> F D", bias: str = ""
) -> tuple[Key, Key]:
    """A linear map with a bias, and the layout of both; `theirs` is the name of their module.

    The layout of a bias that is not given is the kernel's last axis.
    """
    last = kernel.partition(" -> ")[0].split()[-1]
    return (
        Key(f"{ours}/kernel", f"{theirs}.weight", kernel),
        Key(f"{ours}/bias", f"{theirs}.bias", bias or f"{last} -> {last}"),
    )


def attention_keys(
    theirs: str, out: str, names: tuple[str, str, str] = ("query", "key", "value")
) -> tuple[Key, ...]:
    """Self-attention; `theirs` is what stands before "query", `out` the map back to the stream."""
    inputs = tuple(
        key
        for ours, name in zip(("query", "key", "value"), names, strict=True)
        for key in linear_keys(
            f"encoder/attention/{ours}", f"{theirs}{name}", "D H K -> (H K) D", "H K -> (H K)"
        )
    )
    return (*inputs, *linear_keys("encoder/attention/out", out, "H K D -> D (H K)"))


def fused_keys(
    theirs: str,
    layout: str,
    leaf: str = "kernel",
    order: tuple[str, ...] = ("query", "key", "value"),
) -> tuple[Key, ...]:
    """Queries, keys and values of self-attention as the parts of one tensor, in an order."""
    return tuple(
        Key(f"encoder/attention/{name}/{leaf}", theirs, layout, part=(index, len(order)))
        for index, name in enumerate(order)
    )


def mlp_keys(inner: str, outer: str) -> tuple[Key, ...]:
    """The two maps of an MLP; `inner` and `outer` are the names of their modules."""
    return (
        *linear_keys("encoder/mlp/wi", inner),
        *linear_keys("encoder/mlp/wo", outer, "F D -> D F"),
    )


def required(fields: Mapping[str, Any], name: str) -> Any:
    """A field that their config.json must have."""
    if fields.get(name) is None:
        raise ProtlmError(f"{name!r} is missing; take config.json from where the weights came from")
    return fields[name]


def typed(fields: Mapping[str, Any], name: str, kind: str, least: int = 1) -> Any:
    """A field that their config.json must have, as a value of this type of `ModelConfig`.

    Raises:
        ProtlmError: it is missing, of another type or out of range.
    """
    value, kinds = required(fields, name), {"bool": bool, "dict": dict}
    number = type(value) is int and -LARGEST <= value <= LARGEST
    if kind == "float":
        valid, needed = number or (type(value) is float and math.isfinite(value)), "a finite number"
    elif kind == "int":
        valid, needed = number and value >= least, f"a whole number from {least} to {LARGEST}"
    else:
        valid = isinstance(value, kinds.get(kind, str))
        needed = {"bool": "true or false", "dict": "an object"}.get(kind, "text")
    if not valid:
        raise ProtlmError(f"{name!r} is {value!r:.60}; it must be {needed}")
    return float(value) if kind == "float" else value


def refuse_unless(fields: Mapping[str, Any], name: str, *allowed: Any) -> None:
    """Raises ProtlmError when a field is there with a value that our family cannot express."""
    if name in fields and fields[name] not in allowed:
        choices = " or ".join(repr(value) for value in allowed if value is not None)
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
