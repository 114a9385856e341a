"""RunConfig: one frozen dataclass of typed sections that defines a run.

Sections are checked against the dataclasses here and in the modules that read them: an unknown name
or a value of the wrong type is an error before anything runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any, Literal

from protlm_jax.data.config import DataConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.models.adapters import TuneConfig
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.registry import family_of
from protlm_jax.objectives import build_objective, objective_class
from protlm_jax.storage.typed import shown, typed
from protlm_jax.vocabularies import get_vocabulary


class UnknownField(ProtlmError):
    """A section or a field that does not exist; `name` is its full name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The objective's name and options; in files and on the command line, one flat section."""

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}

    @classmethod
    def from_dict(cls, section: dict[str, Any]) -> ObjectiveConfig:
        """Checks and types the section; raises a ProtlmError that names the wrong field."""
        if "name" not in section:
            raise ProtlmError("config.objective must be a section with a field 'name'")
        name = typed(section["name"], str, "config.objective.name")
        hints = typing.get_type_hints(objective_class(name))
        known = {field: hints[field] for field in cls.fields(name)}
        options = {f: v for f, v in section.items() if f != "name"}
        refuse_unknown(options, {"name": str, **known}, prefix="objective.")
        checked = {f: typed(v, known[f], f"config.objective.{f}") for f, v in options.items()}
        return cls(name, checked)

    @staticmethod
    def fields(name: str) -> list[str]:
        """Names of the options of an objective."""
        own = dataclasses.fields(objective_class(name))
        return [field.name for field in own if field.name != "vocabulary"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and rhythm of a run.

    Attributes:
        steps: number of updates.
        batch_size: rows per update, over all devices.
        accumulate: equal parts a batch is computed in, one after the other, to save memory.
        seed: of parameters, data order, corruption and dropout.
        log_every: steps between lines of metrics.
        evaluate_every: steps between evaluations on held-out proteins; 0 for never.
        evaluate_batches: batches per evaluation.
        checkpoint_every: steps between checkpoints; one is always written at the last step.
        keep: how many of the newest checkpoints stay.
        keep_every: checkpoints at multiples of this stay for ever; 0 for none.
        carry: a recurrent model's memory when a run is resumed: "save" keeps it in the
            checkpoints, and resuming is exact; "reset" makes them smaller, and a resumed run has an
            empty one.
        skip_limit: how many updates in a row may be left out because loss or gradients are not
            finite; one more stops the run. 0 stops it at the first.
        skip_above: also leave out updates whose gradient norm is more than this times the median of
            the last 100; 0 for no such rule.
        patience: evaluations in a row without a lower held-out loss that end the run; 0 for none.
            Checkpoints are then those of the lowest loss alone.
        profile_steps: first and last step of a trace for TensorBoard or XProf; empty for none.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    evaluate_batches: int = 8
    checkpoint_every: int = 500
    keep: int = 2
    keep_every: int = 0
    carry: Literal["save", "reset"] = "save"
    skip_limit: int = 0
    skip_above: float = 0.0
    patience: int = 0
    profile_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        may_be_0 = ["seed", "evaluate_every", "keep_every", "skip_limit", "skip_above", "patience"]
        for field, value in dataclasses.asdict(self).items():
            least = int(field not in may_be_0)
            if field not in ("carry", "profile_steps") and value < least:
                raise ProtlmError(f"train.{field} is {value}; it must be at least {least}")
        if self.batch_size % self.accumulate:
            raise ProtlmError(
                f"train.batch_size {self.batch_size} does not divide into "
                f"train.accumulate {self.accumulate} equal parts"
            )
        if self.skip_above and not self.skip_limit:
            raise ProtlmError("train.skip_above needs train.skip_limit: how many in a row, at most")
        if self.patience and not self.evaluate_every:
            raise ProtlmError("train.patience needs train.evaluate_every: it counts evaluations")
        steps = self.profile_steps
        if steps and (len(steps) != 2 or not 0 < steps[0] <= steps[1]):
            raise ProtlmError(f"train.profile_steps is {steps}; write two steps: 10,15")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its settings.

    Attributes:
        name: "adamw"; "lamb" (You et al. 2020; ProtBert); "adafactor" with T5's settings (Shazeer &
            Stern 2018; ProtT5), whose learning rate is relative to each tensor's scale; or "muon"
            (Jordan et al. 2024), which orthogonalises the momentum of each layer's matrices, and
            leaves tables, heads, norms and biases to AdamW. Its updates are scaled to the size of
            AdamW's (Liu et al. 2025, 2502.16982), so that both share one rate.
        weight_decay: added to the update as `weight_decay * parameter` before the learning rate,
            except for norms and biases (`is_decayed`). LAMB counts it in the trust ratio, which
            norms and biases do not have: their update is Adam's, as in Google's own LAMB
            (google-research/albert, lamb_optimizer.py). Unlike there, and as in the paper, Adam's
            moments are corrected for their start at zero.
        clip_norm: gradients with a larger global norm are scaled down to it; 0 leaves them alone.
        b1, b2, eps: Adam's moments, for AdamW, LAMB and what Muon leaves to AdamW.
        momentum: Muon's, with Nesterov's step.
        ema: decay of an exponential moving average of the parameters, which is what evaluations
            score, and what readers and `export` take of the run; 0 for none. Before update n
            (from 0) the decay is at most n / (n + 10), so that the start is forgotten.
    """

    name: Literal["adamw", "lamb", "adafactor", "muon"] = "adamw"
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    momentum: float = 0.95
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.ema < 1.0:
            raise ProtlmError(f"optimizer.ema is {self.ema}; a decay is in [0, 1)")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a function of the step, counted from 0 at the first update.

    Attributes:
        name: "constant", "linear" (linear decay to 0 at the last step), "cosine" (half a cosine
            to 0 at the last step), "rsqrt" (T5's inverse square root, which never reaches 0) or
            "wsd" (warmup, stable, decay: constant until the last `decay_steps`, then linear to 0).
        learning_rate: the peak; for "rsqrt" the factor in front of 1/sqrt(step).
        warmup_steps: the rate rises linearly from 0 at step 0 to the peak at this step. For
            "rsqrt", T5's meaning: until this step the rate stays at its peak,
            learning_rate / sqrt(warmup_steps).
        first_step: updates that were made before this run, where it continues the schedule of
            another one: the rate of the run's step i is that of i + first_step.
        total_steps: where a decaying schedule reaches 0, counted like first_step; 0 for the end of
            the run.
        decay_steps: of "wsd".
    """

    name: Literal["constant", "linear", "cosine", "rsqrt", "wsd"] = "linear"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    first_step: int = 0
    total_steps: int = 0
    decay_steps: int = 0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; see docs/pods.md.

    Attributes:
        data: groups of devices that each hold a copy of the state and take their share of the rows;
            -1, on at most one axis, is all remaining devices.
        fsdp: devices of a group that split the copy between them, and take their share of the rows.
        tensor: devices that compute the same rows together, split by heads, MLP and vocabulary.
        slices: groups of devices joined by a slow network; each has the mesh of the other three,
            and a share of the rows. TPUs report their slice themselves.
        stream: activations between sublayers, which `tensor` does not split by itself: "whole" on
            each device, or split over it by "length" or by "embed".
        auto: choose data, fsdp and tensor from the devices, the size of the state and the rows;
            see `protlm_jax.training.mesh_choice`.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1
    stream: Literal["whole", "length", "embed"] = "whole"
    auto: bool = False

    def __post_init__(self) -> None:
        if self.auto and (self.data, self.fsdp, self.tensor) != (-1, 1, 1):
            raise ProtlmError(
                "config.mesh is to be chosen (auto) and given (data, fsdp, tensor) at once; leave "
                "out one of the two"
            )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run; saved as config.json in its folder.

    Attributes:
        init_from: a run, a checkpoint or a Hugging Face folder whose parameters the run starts
            from; None for random ones. A resumed run reads its own checkpoint.
        init_what: "params", or "state" for the optimizer's moments too (of our own runs with the
            same optimizer).
    """

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    init_from: str | None = None
    init_what: Literal["params", "state"] = "params"

    def __post_init__(self) -> None:
        limit = self.model.max_positions
        if limit and self.data.length > limit:
            raise ProtlmError(
                f"data.length {self.data.length} exceeds the model's {limit} positions: "
                f"lower data.length or raise model.max_positions"
            )
        if self.tune.method != "all" and self.init_from is None:
            raise ProtlmError(
                f"tune.method={self.tune.method} trains a part of a model that is there: name it "
                f"with --config.init_from=MODEL"
            )
        vocabulary = get_vocabulary(self.model.vocabulary)
        build_objective(self.objective.name, vocabulary, **self.objective.options)
        labels = self.objective.name == "labels"
        objectives = (self.objective.name,) if labels else objectives_of(self.model)
        if self.tune.method == "head" and not labels:
            raise ProtlmError("tune.method=head trains the head of a task: see protlm finetune")
        if self.objective.name not in objectives:
            raise ProtlmError(
                f"a model of family {self.model.family!r} is not trained by objective "
                f"{self.objective.name!r}; choose {' or '.join(map(repr, objectives))}"
            )
        tasks = objective_class(self.objective.name).tasks
        if self.data.task not in tasks:
            raise ProtlmError(
                f"objective {self.objective.name!r} does not read the data task "
                f"{self.data.task!r}; choose data.task = {' or '.join(map(repr, tasks))}"
            )
        if self.model.memory_length and self.data.task != "stream":
            raise ProtlmError(
                f"model.memory_length is {self.model.memory_length}, but the rows of the data task "
                f"{self.data.task!r} do not continue each other: set model.memory_length=0, or "
                f"data.task='stream'"
            )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "objective": self.objective.to_dict()}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> RunConfig:
        """Checks and types a nested dict.

        Raises UnknownField for a section or field that does not exist, and ProtlmError for a
        missing one or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        refuse_unknown(tree, hints, prefix="")
        require_sections(tree)
        for name in SECTIONS:
            if name not in tree and name not in ("mesh", "tune"):
                raise ProtlmError(f"config.{name} is missing: the config file must define it")
        return cls(**{name: _field(hints[name], value, name) for name, value in tree.items()})


# The fields of a RunConfig that are dataclasses.
SECTIONS = tuple(
    name
    for name, hint in typing.get_type_hints(RunConfig).items()
    if dataclasses.is_dataclass(hint)
)


def objectives_of(model: ModelConfig) -> tuple[str, ...]:
    """Names of the objectives that train a model, its own first.

    Raises a ProtlmError where there is none, as for ELECTRA's discriminator without its generator.
    """
    names = family_of(model).module.objectives
    if not names:
        raise ProtlmError(
            f"a model of family {model.family!r} is not trained alone: start from the folder that "
            f"holds its generator too, as `generator` beside `discriminator`"
        )
    return names


def require_sections(tree: dict[str, Any], prefix: str = "") -> None:
    """Raises a ProtlmError where a section is something else than a dict."""
    for name in SECTIONS:
        if not isinstance(section := tree.get(name, {}), dict):
            raise ProtlmError(
                f"config.{prefix}{name} is {shown(section)}; it must be a section with fields"
            )


def _field(hint: Any, value: Any, name: str) -> Any:
    """A section or a single field, checked and typed."""
    if name == "objective":
        return ObjectiveConfig.from_dict(value)
    if name not in SECTIONS:
        return typed(value, hint, f"config.{name}")
    hints = typing.get_type_hints(hint)
    refuse_unknown(value, hints, prefix=f"{name}.")
    checked = {f: typed(v, hints[f], f"config.{name}.{f}") for f, v in value.items()}
    try:
        return hint(**checked)
    except TypeError as error:
        raise ProtlmError(f"config.{name}: {error}") from error


def refuse_unknown(given: dict[str, Any], known: dict[str, Any], prefix: str) -> None:
    """Raises an UnknownField for a name that is not known, with the nearest one that is."""
    for name in map(str, given):
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known)}"
            full = prefix + (name if name.isidentifier() and len(name) <= 80 else shown(name))
            raise UnknownField(full, f"config.{full} does not exist; {hint}")
