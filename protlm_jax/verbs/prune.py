"""The verb `protlm prune`: a model with fewer layers, as a run and as a Hugging Face folder."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.errors import ProtlmError
from protlm_jax.verbs.arguments import add_rare_residues, add_window, positive

if TYPE_CHECKING:
    from protlm_jax.models import LoadedModel

METRIC = {"effect": "skips", "influence": "angles"}  # what a rule measures
QUANTITY = {"effect": "skip_delta_nll", "influence": "block_influence"}
ROUNDS = 5  # of timing, whole and pruned in turn

EPILOG = """\
typical use:
  protlm prune --model hf/esm2_8m --drop 4 --output pruned/esm2
  protlm prune --model hf/esm2_650m --drop auto --layers 8 --output pruned/esm2
  protlm prune --model runs/mine --drop auto --budget 0.02 --input proteins.fasta \\
      --heal 2000 --fasta my.fasta --output pruned/mine

rules of --drop auto:
  effect     remove the layer whose skip raises the loss least, measure again, and so on
             (default; needs a model that predicts residues)
  influence  remove the layers with the least block influence, 1 - cos(h_l, h_l+1)
             (ShortGPT, 2403.03853)
  last       remove the last layers (Gromov et al., 2403.17887, remove a block near the end)

The loss is that of 15 % of the residues of held-out proteins, shown as <mask> to masked models.
DIR gets pruned/ (a run folder), huggingface/ (the same for transformers), with --heal also
healed/ (continued pretraining of pruned/, as --config adapt does; huggingface/ is then the
healed model), and prune.json with all numbers. The same command again goes on after a kill.
"""


def add_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    """Gives the verb its arguments."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = EPILOG
    verb.add_argument("--model", required=True, help=model_help)
    verb.add_argument(
        "--drop", required=True, metavar="LAYERS|auto",
        help="layers to remove, counted from 0, such as 4 or 20-28,30; or auto",
    )  # fmt: skip
    verb.add_argument("--by", choices=("effect", "influence", "last"), default="effect",
                      help="rule of --drop auto; default: effect")  # fmt: skip
    verb.add_argument("--layers", type=positive, metavar="N", help="auto: remove N layers")
    verb.add_argument(
        "--budget", type=float, metavar="NATS",
        help="auto, effect: remove layers as long as the loss rises by at most NATS per residue",
    )  # fmt: skip
    verb.add_argument(
        "--stack", choices=("encoder", "decoder"), default="encoder",
        help="of an encoder-decoder: where to remove layers; default: encoder",
    )  # fmt: skip
    verb.add_argument(
        "--input", type=Path, metavar="FILE", help="FASTA of proteins to measure the loss on; "
        "default: proteins held out of training",
    )  # fmt: skip
    verb.add_argument(
        "--proteins", type=positive, default=64, metavar="N", help="drawn at most; default: 64"
    )
    verb.add_argument("--heal", type=positive, metavar="STEPS", help="train the pruned model on")
    verb.add_argument("--fasta", type=Path, metavar="FILE", help="proteins to heal with")
    add_rare_residues(verb)
    add_window(verb)
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to fill")


def run(arguments: argparse.Namespace) -> None:
    """Chooses layers, removes them, heals if asked, exports, and prints what it costs and saves."""
    from protlm_jax.evaluation import verbs
    from protlm_jax.huggingface import load_model
    from protlm_jax.models.identity import identity
    from protlm_jax.storage.digests import digest_of_data
    from protlm_jax.storage.json_files import read_json, write_json

    _require_consistent(arguments)
    output: Path = arguments.output
    loaded = verbs.with_residues(load_model(arguments.model), arguments.rare_residues)
    data = verbs.data_of(arguments.model)
    verbs.require_answers(loaded, data)
    _require_layers(arguments, loaded)
    sequences = verbs.drawn(data, arguments.proteins, arguments.input, loaded.policy)
    measure = _Loss(sequences, verbs.row_of(loaded, arguments.window), arguments.stack)
    verbs.say_rare(loaded)
    settings = {
        "model": identity(loaded), "stack": arguments.stack, "drop": arguments.drop,
        "by": arguments.by, "layers": arguments.layers, "budget": arguments.budget,
        "proteins": digest_of_data(json.dumps(list(sequences.items())).encode()),
        "length": measure.length,
    }  # fmt: skip
    _begin(output, settings)
    file = output / "prune.json"
    found = read_json(file, remedy=f"delete {output}") if file.exists() else {}
    if found:
        _require_intact(output, found)
    else:
        found = _remove(arguments, loaded, measure)
        write_json(file, found)
    if arguments.heal:
        _heal(arguments, measure, found)
        write_json(file, found)
    _print(arguments, found)


def _remove(arguments: argparse.Namespace, loaded: LoadedModel, measure: _Loss) -> dict[str, Any]:
    """Chooses and removes layers, writes both folders, and gives the numbers."""
    from protlm_jax.huggingface import export, import_model, provenance
    from protlm_jax.models.exchange import CONTACT_HEAD
    from protlm_jax.models.pruning import pruned

    output: Path = arguments.output
    dropped, steps = _chosen(arguments, loaded, measure)
    small = pruned(loaded, {arguments.stack: dropped})
    found = {
        "dropped": dropped,
        "steps": steps,
        "whole": _about(loaded, measure),
        "pruned": _about(small, measure),
        "forward_seconds": _seconds(loaded, small, measure.length),
    }
    if CONTACT_HEAD in small.params:
        print("the contact head keeps its weights for the remaining layers: refit it")
    export(small, output / "huggingface", **provenance(arguments.model))
    shutil.rmtree(output / "pruned", ignore_errors=True)
    import_model(output / "huggingface", output / "pruned")
    found["identities"] = {name: _identity(output / name) for name in ("pruned", "huggingface")}
    return found


def _heal(arguments: argparse.Namespace, measure: _Loss, found: dict[str, Any]) -> None:
    """Continues the pretraining of the pruned model, exports it, and adds its numbers.

    `train` refuses a folder that was healed with other steps or proteins.
    """
    from protlm_jax.config.files import load_config
    from protlm_jax.huggingface import (
        export,
        load_model,
        load_source,
        provenance,
        read_architecture,
    )
    from protlm_jax.storage.json_files import write_json
    from protlm_jax.training.loop import train

    output: Path = arguments.output
    overrides = [
        f"init_from={output / 'pruned'}",
        f"data.fasta={arguments.fasta}",
        f"data.length={min(measure.length, 512)}",
        f"train.steps={arguments.heal}",
        f"schedule.warmup_steps={min(100, arguments.heal // 10)}",
    ]
    config = load_config("adapt", overrides, output / "healed", read_architecture)
    made = train(config, output / "healed", load_source)
    if not made and found.get("healed", {}).get("steps") == arguments.heal:
        return
    found["identities"].pop("huggingface", None)  # replaced below; a kill may come between
    write_json(output / "prune.json", found)
    healed = load_model(output / "healed")
    export(healed, output / "huggingface", **provenance(output / "healed"))
    found["healed"] = {"steps": arguments.heal, **_about(healed, measure)}
    found["identities"] |= {name: _identity(output / name) for name in ("healed", "huggingface")}


def _begin(output: Path, settings: dict[str, Any]) -> None:
    """Takes a new folder, or one that was begun with the same settings."""
    from protlm_jax.storage.owner import LOCK
    from protlm_jax.storage.parts import SETTINGS, claim

    others = {entry.name for entry in output.iterdir()} - {LOCK}
    if others and SETTINGS not in others:
        raise ProtlmError(f"{output} holds other files: choose another --output")
    claim(output, settings)


def _identity(folder: Path) -> str:
    from protlm_jax.huggingface import load_model
    from protlm_jax.models.identity import identity

    return identity(load_model(folder))


def _require_intact(output: Path, found: Mapping[str, Any]) -> None:
    """Raises ProtlmError where a folder is not as it was written."""
    for name, written in found["identities"].items():
        if _identity(output / name) != written:
            raise ProtlmError(f"{output / name} is not as it was written: delete {output}")


def _require_layers(arguments: argparse.Namespace, loaded: LoadedModel) -> None:
    """Raises ProtlmError where the stack does not exist or has too few layers."""
    from protlm_jax.models.pruning import LAYERS_FIELD, pruned

    drop = [] if arguments.drop == "auto" else layers_of(arguments.drop)
    pruned(loaded, {arguments.stack: drop})
    layers = getattr(loaded.config, LAYERS_FIELD[arguments.stack])
    if layers < 2 or (arguments.layers or 1) >= layers:
        raise ProtlmError(
            f"the {arguments.stack} of {loaded.name} has {layers} layers: at most {layers - 1} "
            f"can be removed"
        )


def _print(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    from protlm_jax.evaluation.tables import Table

    output: Path = arguments.output
    print(f"removed layers {', '.join(map(str, found['dropped']))} of the {arguments.stack}")
    if found["steps"]:
        print(Table.of(found["steps"]).text())
    seconds = dict(zip(("whole", "pruned"), found["forward_seconds"], strict=True))
    rows = [
        {"": name, **{key: found[name].get(key) for key in ("layers", "parameters", "loss")},
         "95 % interval": _interval(found[name]), "forward, s": seconds.get(name)}
        for name in ("whole", "pruned", "healed") if name in found
    ]  # fmt: skip
    print(Table.of(rows).text())
    print(f"wrote {output / 'pruned'} and {output / 'huggingface'}")
    if not arguments.heal:
        print(
            f"to heal it: repeat with --heal STEPS --fasta FILE, or protlm train --config "
            f"adapt --config.init_from={output / 'pruned'} --config.data.fasta=FILE "
            f"--workdir FOLDER"
        )


def layers_of(text: str) -> list[int]:
    """Layers named as in "20-28,30", sorted.

    Raises:
        ProtlmError: it is something else.
    """
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ProtlmError(f"--drop {text!r}: name layers as in 4 or 20-28,30, or say auto")
        layers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(layers)


class _Loss:
    """Measures models on the same residues of the same proteins."""

    def __init__(self, sequences: Mapping[str, str], length: int, stack: str) -> None:
        self.sequences, self.length, self.stack = sequences, length, stack
        self.known: dict[tuple[int, str], tuple[LoadedModel, Any]] = {}

    def __call__(self, loaded: LoadedModel, metric: str) -> Any:
        """The results of one metric, and the model's own loss where it predicts residues."""
        from protlm_jax.evaluation.depth.analyse import analyse

        key = (id(loaded.params), metric)
        if key not in self.known:
            found = analyse(
                loaded, self.sequences, metrics=[metric], length=self.length, progress=True
            )
            self.known[key] = (loaded, found[self.stack])
        return self.known[key][1]


def _require_consistent(arguments: argparse.Namespace) -> None:
    if arguments.drop != "auto":
        layers_of(arguments.drop)
    if (arguments.drop == "auto") != bool(arguments.layers or arguments.budget is not None):
        raise ProtlmError("--drop auto needs --layers N or --budget NATS, which belong to it alone")
    if arguments.budget is not None and (arguments.by != "effect" or not arguments.budget >= 0):
        raise ProtlmError("--budget is a rise of the loss in nats, and needs --by effect")
    if bool(arguments.heal) != bool(arguments.fasta):
        raise ProtlmError("--heal STEPS and --fasta FILE belong together")


def _chosen(
    arguments: argparse.Namespace, loaded: LoadedModel, measure: Callable[..., Any]
) -> tuple[list[int], list[dict[str, Any]]]:
    """The layers to remove, and how each was chosen."""
    from protlm_jax.models.pruning import LAYERS_FIELD, pruned

    if arguments.drop != "auto":
        return layers_of(arguments.drop), []
    layers = getattr(loaded.config, LAYERS_FIELD[arguments.stack])
    most = arguments.layers or layers - 1
    if arguments.by == "last":
        return list(range(layers - most, layers)), []
    if arguments.by == "influence":
        values = measure(loaded, METRIC["influence"])[QUANTITY["influence"]].values
        chosen = sorted(range(layers), key=lambda layer: float(values[layer]))[:most]
        steps = [{"layer": layer, "block influence": float(values[layer])} for layer in chosen]
        return sorted(chosen), steps
    left, steps = list(range(layers)), list[dict[str, Any]]()
    whole = rise = 0.0
    while len(steps) < most:
        gone = {arguments.stack: set(range(layers)) - set(left)}
        results = measure(pruned(loaded, gone), METRIC["effect"])
        if QUANTITY["effect"] not in results:
            raise ProtlmError(
                f"{loaded.name} gives no distribution over residues: use --by influence or last"
            )
        loss, rises = float(results["base_nll"]), results[QUANTITY["effect"]].values
        whole = loss if not steps else whole
        best = int(rises.argmin())
        rise = loss + float(rises[best]) - whole
        if arguments.budget is not None and rise > arguments.budget:
            break
        steps.append({"layer": left.pop(best), "loss": whole + rise, "rise in all": rise})
    if not steps:
        raise ProtlmError(
            f"no layer can be removed within {arguments.budget} nats: the least costs {rise:.4g}"
        )
    return sorted(set(range(layers)) - set(left)), steps


def _about(loaded: LoadedModel, measure: Callable[..., Any]) -> dict[str, Any]:
    """Size and loss of a model; the loss is absent where it predicts no residues."""
    from protlm_jax.evaluation.depth.results import records
    from protlm_jax.models import parameter_count

    about: dict[str, Any] = {
        "layers": loaded.config.num_layers + loaded.config.num_decoder_layers,
        "parameters": parameter_count(loaded.params),
    }
    results = measure(loaded, "contributions")
    if "base_nll" in results:
        (entry,) = records(results, "base_nll")
        about |= {"loss": entry["value"], "low": entry.get("low"), "high": entry.get("high")}
    return about


def _interval(about: Mapping[str, Any]) -> str | None:
    if about.get("low") is None:
        return None
    return f"{about['low']:.4g} to {about['high']:.4g}"


def _seconds(whole: LoadedModel, small: LoadedModel, length: int) -> list[float]:
    """Median seconds of a forward pass of one row, whole and pruned."""
    import jax

    from protlm_jax.models.build import example_batch

    batch = example_batch(whole.config, 1, length)
    applies = [jax.jit(one.model.apply) for one in (whole, small)]
    params = [jax.device_put({"params": one.params}) for one in (whole, small)]
    taken: list[list[float]] = [[], []]
    for turn in range(ROUNDS + 1):
        for apply, tree, seconds in zip(applies, params, taken, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(apply(tree, batch))
            if turn:  # the first one compiles
                seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]
