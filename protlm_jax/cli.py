"""The `protlm` command. Heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protlm_jax import __version__
from protlm_jax.config.folders import latest_step, newest_run
from protlm_jax.errors import ProtlmError, Stopped
from protlm_jax.process.platforms import expect_no_tpu
from protlm_jax.process.sigterm import end, ends_at_sigterm, told_to_end
from protlm_jax.verbs.arguments import (
    add_mesh,
    add_rare_residues,
    add_window,
    output_owned,
    positive,
)

if TYPE_CHECKING:
    from protlm_jax.models.loaded import LoadedModel
    from protlm_jax.training.distributed import Hosts

Run = Callable[[argparse.Namespace], int | None]
Verb = tuple[str, Callable[[argparse.ArgumentParser], None], Run]

CONFIGURED = (
    "configs",
    "finetune",
    "plan",
    "train",
)  # verbs that take --config, and overrides of its fields

MODEL_HELP = (
    "a run folder, one of its checkpoints, a Hugging Face folder, an id on its Hub, or a model_dir "
    "of T5X"
)

EPILOG = """\
typical use:
  protlm quickstart                                      # everything below, in ten minutes
  protlm train --config tiny:bert --workdir runs/bert
  protlm train --config tiny:bert --workdir runs/mine \\
      --config.data.fasta=my.fasta.gz --config.train.steps=5000
  protlm prepare --dataset uniref50 --release 2024_01 --input uniref50.fasta.gz \\
      --output data/uniref50 --tokens
  protlm plan --config prot_t5_xxl_bfd --topology v3:16x32
  protlm evaluate --model runs/bert
  protlm probe --model runs/bert --layers all --output probes/bert
  protlm predict --probe probes/bert --model runs/bert --input new.fasta --output states.fasta
  protlm depth --model runs/bert
  protlm prune --model runs/bert --drop auto --layers 1 --output pruned/bert
  protlm embed --model runs/bert --input proteins.fasta --output embeddings.h5
  protlm score --model runs/bert --input proteins.fasta --output scores.csv
  protlm export --model runs/bert --output hf/bert
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code.

    0: everything asked for was done; 1: an error that the user can fix; 3: some records of the
    input could not be used; 75: SIGTERM ended it; 130: interrupted.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [text.removeprefix("--config.") for text in rest if text.startswith("--config.")]
    if len(overrides) != len(rest) or (overrides and arguments.verb not in CONFIGURED):
        unknown = [text for text in rest if not text.startswith("--config.")] or rest
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.overrides = overrides
    expect_no_tpu()
    try:
        with ends_at_sigterm(functools.partial(_left_at, arguments)), output_owned(arguments):
            return arguments.run(arguments) or 0
    except ProtlmError as error:
        code, line = 1, f"error: {error}"
    except Stopped as stopped:
        code, line = Stopped.EXIT_CODE, str(stopped)
    except KeyboardInterrupt:
        code, line = 130, "interrupted; run the same command again to go on"
    if argv is None:  # the process has nothing else to do
        end(code, line)
    print(line, file=sys.stderr)
    return code


def _left_at(arguments: argparse.Namespace) -> str:
    """What to say when a verb is told to end before it has anything to save."""
    if arguments.verb != "train":
        return "told to end; the same command goes on, or starts again"
    return told_to_end(latest_step(newest_run(arguments.workdir) / "checkpoints"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="protlm",
        description="Pretrain protein language models in JAX, then look inside them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"protlm_jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, (text, add_arguments, run) in _verbs().items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.set_defaults(run=run)
        add_arguments(verb)
    return parser


def _verbs() -> dict[str, Verb]:
    """Name -> what it does, its arguments, and the function that runs it."""
    from protlm_jax.data.prepare import verb as prepare
    from protlm_jax.evaluation.depth import verb as depth
    from protlm_jax.evaluation.embedding import verb as embed
    from protlm_jax.evaluation.probes import verb as probe
    from protlm_jax.evaluation.scoring import verb as score
    from protlm_jax.planning import verb as plan
    from protlm_jax.verbs import completion, configs, doctor, finetune, prune

    def reader(
        text: str,
        add: Callable[[argparse.ArgumentParser, str], None],
        run: Callable[[argparse.Namespace, Callable[[str], LoadedModel]], int | None],
    ) -> Verb:
        """A verb that reads a model."""

        def add_all(verb: argparse.ArgumentParser) -> None:
            add(verb, MODEL_HELP)
            add_mesh(verb)

        return text, add_all, lambda given: run(given, functools.partial(_load, mesh=given.mesh))

    return {
        "prepare": ("turn release files into data to train on, of any size",
                    prepare.add_arguments, prepare.run),
        "train": ("pretrain a model, or go on where the run in the folder stopped",
                  _add_train, _train),
        "plan": ("say if training fits a TPU pod, and how fast it is there",
                 plan.add_arguments, _plan),
        "evaluate": ("score held-out proteins at residues shown as <mask>",
                     _add_evaluate, _evaluate),
        "probe": reader("see what heads read from frozen embeddings, with controls",
                        probe.add_probe_arguments, probe.run_probe),
        "finetune": ("train a model on labelled proteins: adapters, a head, or all of it",
                     lambda verb: finetune.add_arguments(verb, MODEL_HELP), finetune.run),
        "predict": reader("apply a probe's heads, or a fine-tuned model, to new proteins",
                          probe.add_predict_arguments,
                          functools.partial(probe.run_predict, load_tuned=finetune.load_tuned)),
        "depth": reader("measure what each layer contributes", depth.add_arguments, depth.run),
        "prune": ("remove layers that contribute little",
                  lambda verb: prune.add_arguments(verb, MODEL_HELP), prune.run),
        "embed": reader("turn proteins into vectors, of each residue or of the whole",
                        embed.add_arguments, embed.run),
        "score": reader("how likely the model finds proteins, or variants of one",
                        score.add_arguments, score.run),
        "export": ("write a folder that transformers loads, or T5X", _add_export, _export),
        "import": ("turn a Hugging Face folder into a run folder", _add_import, _import),
        "quickstart": ("train, evaluate, probe, look inside, export, report",
                       _add_quickstart, _quickstart),
        "configs": ("list the configs of published and small runs, or print one",
                    configs.add_arguments, configs.run),
        "doctor": ("see whether what a feature needs is installed",
                   doctor.add_arguments, doctor.run),
        "completion": ("print a script that completes commands in bash or zsh",
                       completion.add_arguments,
                       lambda given: print(completion.script(_parser(), given.shell))),
    }  # fmt: skip


def _load(path: str, mesh: str) -> LoadedModel:
    from protlm_jax.huggingface import load_model
    from protlm_jax.huggingface.placement import parse_mesh

    return load_model(path, parse_mesh(mesh))


def _add_train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config", required=True,
        help="a name that `protlm configs` lists, e.g. tiny:bert, or path/to/mine.py:variant; the "
        "file is Python code that is executed: use only files that you trust",
    )  # fmt: skip
    verb.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    verb.add_argument(
        "--distributed", action="store_true",
        help="this host is one of several that run the same command, and the cluster (TPU pod, "
        "SLURM, Open MPI) knows which; --workdir is on a disk that all share",
    )  # fmt: skip
    verb.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: address of host 0,")
    verb.add_argument("--hosts", type=positive, help="how many hosts there are,")
    verb.add_argument("--host", type=int, help="and which of them this is, from 0")
    verb.epilog = (
        "Any field of the config can be overridden: --config.train.steps=1000, "
        "--config.data.fasta=my.fasta.gz, --config.mesh.fsdp=2. --config.init_from=MODEL continues "
        "the pretraining of a model. Of a recipe with phases, --config.phases.NAME.train.steps=10 "
        "sets one phase. The same command again resumes. SIGTERM saves and ends with exit code "
        "75; of several hosts all stop at the same step, and where one is lost the others end too."
    )


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", required=True, help=MODEL_HELP)
    verb.add_argument("--output", type=Path, help="write the result as JSON here")
    verb.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    verb.add_argument(
        "--fasta", type=Path, help="proteins to score; default: the held-out split of the run"
    )
    add_rare_residues(verb)
    add_window(verb)
    add_mesh(verb)


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", required=True, help=MODEL_HELP)
    verb.add_argument("--output", required=True, type=Path, help="folder to create")
    verb.add_argument(
        "--format", choices=("huggingface", "peft", "t5x"), default="huggingface",
        help="peft writes the adapter of a fine-tuned run, and loads it to prove it; huggingface "
        "the model with it merged; t5x a model_dir with one checkpoint, from which T5X can start",
    )  # fmt: skip
    add_rare_residues(verb)


def _add_import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", required=True, help="a Hugging Face folder")
    verb.add_argument("--output", required=True, type=Path, help="folder to create")


def _add_quickstart(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("variant", nargs="?", choices=("bert", "t5"), default="bert")
    verb.add_argument("--output", type=Path, help="default: runs/quickstart-VARIANT")


def _train(arguments: argparse.Namespace) -> None:
    from protlm_jax.config.recipes import load_recipe
    from protlm_jax.huggingface import load_source, read_architecture
    from protlm_jax.training.distributed import connected, is_primary
    from protlm_jax.training.phases import train_phases

    with connected(_hosts(arguments)):
        phases = load_recipe(
            arguments.config, arguments.overrides, arguments.workdir, read_architecture
        )
        steps = " + ".join(str(phase.config.train.steps) for phase in phases)
        made = train_phases(phases, arguments.workdir, load_source)
        if is_primary() and made:
            print(f"done: {steps} steps in {arguments.workdir}")
        elif is_primary():
            print(f"nothing to do: {arguments.workdir} has its {steps} steps already")


def _hosts(arguments: argparse.Namespace) -> Hosts | None:
    """Where this process stands among others; None where it is alone."""
    from protlm_jax.training.distributed import Hosts

    given = (arguments.coordinator, arguments.hosts, arguments.host)
    if all(value is None for value in given):
        return Hosts() if arguments.distributed else None
    if None in given:
        raise ProtlmError("--coordinator, --hosts and --host belong together: give all three")
    return Hosts(*given)


def _plan(arguments: argparse.Namespace) -> int | None:
    from protlm_jax.huggingface import read_architecture
    from protlm_jax.planning import verb
    from protlm_jax.t5x_bridge import planned

    if arguments.gin_file:
        return planned.run(arguments)
    _finish(verb.run(arguments, read_architecture), arguments)
    return None


def _evaluate(arguments: argparse.Namespace) -> None:
    from protlm_jax.evaluation import verbs

    loaded = _load(arguments.model, arguments.mesh)
    loaded = verbs.with_residues(loaded, arguments.rare_residues)
    data, rate = verbs.data_of(arguments.model), verbs.rate_of(arguments.model)
    length = verbs.row_of(loaded, arguments.window)
    found = verbs.evaluate(loaded, data, arguments.fasta, rate, length=length)
    _finish(found, arguments)
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        verbs.say_rare(loaded)


def _export(arguments: argparse.Namespace) -> None:
    from protlm_jax.huggingface import export, load_model, load_source, provenance
    from protlm_jax.huggingface.write_peft import export_adapter, files_of

    if arguments.format == "peft":
        print(export_adapter(arguments.model, arguments.output))
    elif arguments.format == "t5x":
        from protlm_jax.t5x_bridge.checkpoints import write_checkpoint

        source = load_source(arguments.model)
        source.model.require_whole("it cannot be exported")
        write_checkpoint(source, arguments.output)
    else:
        about = provenance(arguments.model) | {"rare_residues": arguments.rare_residues}
        loaded = load_model(arguments.model)
        export(loaded, arguments.output, **about, files=files_of(arguments.model))
    print(f"wrote {arguments.output}")


def _import(arguments: argparse.Namespace) -> None:
    from protlm_jax.huggingface import import_model

    import_model(arguments.model, arguments.output)
    print(f"wrote {arguments.output}")


def _quickstart(arguments: argparse.Namespace) -> None:
    from protlm_jax.verbs.quickstart import quickstart

    quickstart(arguments.variant, arguments.output or Path(f"runs/quickstart-{arguments.variant}"))


def _finish(result: dict, arguments: argparse.Namespace) -> None:
    from protlm_jax.storage.files import write_atomically

    summary, text = result.pop("summary"), json.dumps(result, indent=1, allow_nan=False)
    print(text if arguments.json else summary)
    if arguments.output is not None:
        write_atomically(arguments.output, f"{text}\n")
        print(f"wrote {arguments.output}", file=sys.stderr if arguments.json else sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
