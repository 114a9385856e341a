"""The `protlm` command. Heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from protlm_jax import __version__
from protlm_jax.errors import ProtlmError

Run = Callable[[argparse.Namespace], None]

MODEL_HELP = "a run folder, one of its checkpoints, or a Hugging Face folder"

EPILOG = """\
typical use:
  protlm quickstart                                      everything below, in ten minutes
  protlm train --config configs/tiny.py:bert --workdir runs/bert
  protlm train --config configs/tiny.py:bert --workdir runs/mine \\
      --config.data.fasta=my.fasta.gz --config.train.steps=5000
  protlm evaluate --model runs/bert
  protlm probe --model runs/bert
  protlm depth --model runs/bert
  protlm export --model runs/bert --output hf/bert
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb. Returns 0 only when everything asked for was done."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [text.removeprefix("--config.") for text in rest if text.startswith("--config.")]
    if len(overrides) != len(rest) or (overrides and arguments.verb != "train"):
        unknown = [text for text in rest if not text.startswith("--config.")] or rest
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.overrides = overrides
    try:
        arguments.run(arguments)
    except ProtlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="protlm",
        description="Pretrain protein language models in JAX, then look inside them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"protlm_jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    train = _verb(
        verbs, _train, "train", "pretrain a model, or go on where the run in the folder stopped"
    )
    train.add_argument("--config", required=True, help="path:variant, e.g. configs/tiny.py:bert")
    train.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    train.epilog = (
        "Any field of the config can be overridden: --config.train.steps=1000, "
        "--config.data.fasta=my.fasta.gz, --config.mesh.fsdp=2. The same command again resumes."
    )

    evaluate = _verb(
        verbs, _evaluate, "evaluate", "score held-out proteins at residues shown as <mask>"
    )
    _takes_model(evaluate)
    evaluate.add_argument(
        "--fasta", type=Path, help="proteins to score; default: the held-out split of the run"
    )

    probe = _verb(
        verbs, _probe, "probe", "predict secondary structure from frozen embeddings, with controls"
    )
    _takes_model(probe)
    probe.add_argument("--train_proteins", type=_positive, default=2500, help="default: 2500")

    depth = _verb(verbs, _depth, "depth", "measure what each layer contributes")
    _takes_model(depth)
    depth.add_argument("--proteins", type=_positive, default=64, help="default: 64")
    depth.add_argument("--fasta", type=Path, help="proteins to use; default: bundled, held out")

    export = _verb(verbs, _export, "export", "write a folder that transformers loads")
    export.add_argument("--model", required=True, help=MODEL_HELP)
    export.add_argument("--output", required=True, type=Path, help="folder to create")

    importing = _verb(verbs, _import, "import", "turn a Hugging Face folder into a run folder")
    importing.add_argument("--model", required=True, help="a Hugging Face folder")
    importing.add_argument("--output", required=True, type=Path, help="folder to create")

    quick = _verb(
        verbs, _quickstart, "quickstart", "train, evaluate, probe, look inside, export, report"
    )
    quick.add_argument("variant", nargs="?", choices=("bert", "t5"), default="bert")
    quick.add_argument("--output", type=Path, help="default: runs/quickstart-VARIANT")
    return parser


def _verb(
    verbs: argparse._SubParsersAction, run: Run, name: str, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    return verb


def _takes_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", required=True, help=MODEL_HELP)
    verb.add_argument("--output", type=Path, help="write the result as JSON here")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _train(arguments: argparse.Namespace) -> None:
    from protlm_jax.configuration import load_config
    from protlm_jax.training.loop import train

    config = load_config(arguments.config, arguments.overrides)
    if train(config, arguments.workdir):
        print(f"done: {config.train.steps} steps in {arguments.workdir}")
    else:
        print(f"nothing to do: {arguments.workdir} has its {config.train.steps} steps already")


def _evaluate(arguments: argparse.Namespace) -> None:
    from protlm_jax.evaluation import verbs
    from protlm_jax.huggingface import load_model

    loaded, data = load_model(arguments.model), verbs.data_of(arguments.model)
    _finish(verbs.evaluate(loaded, data, arguments.fasta), arguments.output)


def _probe(arguments: argparse.Namespace) -> None:
    from protlm_jax.evaluation import verbs
    from protlm_jax.huggingface import load_model

    loaded, data = load_model(arguments.model), verbs.data_of(arguments.model)
    _finish(verbs.probe(loaded, data, arguments.train_proteins), arguments.output)


def _depth(arguments: argparse.Namespace) -> None:
    from protlm_jax.evaluation import verbs
    from protlm_jax.huggingface import load_model

    loaded, data = load_model(arguments.model), verbs.data_of(arguments.model)
    _finish(verbs.depth(loaded, data, arguments.proteins, arguments.fasta), arguments.output)


def _export(arguments: argparse.Namespace) -> None:
    from protlm_jax.huggingface import export, load_model, provenance

    export(load_model(arguments.model), arguments.output, **provenance(arguments.model))
    print(f"wrote {arguments.output}")


def _import(arguments: argparse.Namespace) -> None:
    from protlm_jax.huggingface import import_model

    import_model(arguments.model, arguments.output)
    print(f"wrote {arguments.output}")


def _quickstart(arguments: argparse.Namespace) -> None:
    from protlm_jax.quickstart import quickstart

    quickstart(arguments.variant, arguments.output or Path(f"runs/quickstart-{arguments.variant}"))


def _finish(result: dict, output: Path | None) -> None:
    from protlm_jax.files import write_atomically

    print(result.pop("summary"))
    if output is not None:
        write_atomically(output, json.dumps(result, indent=1) + "\n")
        print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main())
