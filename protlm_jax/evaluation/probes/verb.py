"""The verbs `protlm probe` and `protlm predict`: their arguments, and what they print and write."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.verbs.arguments import add_rare_residues, add_window, positive

if TYPE_CHECKING:
    import xarray

    from protlm_jax.evaluation.probe_data import Benchmark
    from protlm_jax.evaluation.probes.run import Probed
    from protlm_jax.evaluation.tuned import TunedModel
    from protlm_jax.models import LoadedModel
    from protlm_jax.vocabularies import Rare

_DEFAULT_COUNT = 0  # of training proteins: that of `run`, or of `contacts.run`

PROBE_EPILOG = """\
typical use:
  protlm probe --model runs/mine
  protlm probe --model hf/esm2 --layers all --output probes/esm2
  protlm probe --model hf/esm2 --benchmark localization --output probes/where
  protlm probe --model hf/esm2 --input mine.csv --output probes/mine

benchmarks: secondary_structure, localization, gb1_two_vs_rest and its kin, and contacts come
  with the package; stability, remote_homology and conservation are read from --data_dir. Each
  prints its counts, licence and sources.

your own: a table (commas, semicolons or tabs; gz, bz2, xz, zst) with a column `sequence`, one or
  more columns of labels (numbers or classes; empty, NA or NaN where unknown), and, if you like,
  `id` and `split` (train, valid, test, test_NAME). Names of UniProt's exports, FLIP (set,
  validation), TAPE, ProteinGym and DeepLoc are known, in any case. Or a FASTA file whose headers
  say TARGET=..., or with --labels, files of the same names (and --mask, 1 where it counts).

  Labels of residues are a letter for each (? where unknown) or values, 2.73;999.0;;1.4, in
  TARGET, in the files of --labels, or in a column of a table; nothing and 999 mean missing.

  What identifies, divides or describes the proteins (Entry, cluster, Organism, Length) is not
  learned unless --targets names it; the columns used and left out are printed. Without a column
  of splits the proteins are divided by a hash of their sequence. A column of other words:
  --split Partition train=0,1,2 valid=3 test=4

heads: of residues linear and cnn, the ProtTrans head; of proteins linear and fnn, the
  ProtTrans head, on the mean over residues, and light_attention, on the residues.

layers: the model runs once for all of them. Linear heads are solved to their optimum, networks of
  all layers and seeds trained together. The loss on validation proteins chooses the penalty or
  the epoch, and the layer; tests are scored once.
  The model reads all proteins twice, by its own and by re-initialised weights: on the default
  test sets (1,040 proteins) that takes minutes on CPUs even with few training proteins.

Beside the model stand a re-initialised copy of it, the same heads on residues without context,
and the most frequent class. DIR gets results.nc (an
xarray dataset), scores.csv, report.html with pictures and the numbers behind them, and probe/,
which `protlm predict` applies to new proteins; with --maps also maps/.
"""

PREDICT_EPILOG = """\
typical use:
  protlm predict --probe probes/esm2 --model hf/esm2 --input new.fasta --output states.fasta
  protlm predict --probe probes/where --model hf/esm2 --input new.fasta --output where.csv
  protlm predict --model runs/tuned --input new.fasta --output where.csv

The probe is what `protlm probe --output` wrote; of several heads the best on validation is
applied, or name one: probes/esm2/probe/cnn. A model other than the probe's own
(or its export) is refused.

.csv has a row for each record: of proteins the class, its probability and those of all
  classes, or the number; of residues a string with a letter for each, or numbers. .fasta has
  strings alone. Long proteins are read through windows of the length that the probe was trained
  with, and listed. Records that cannot be read keep their row, with the reason in the column
  `error`; exit code 3 says that there are some.
"""


def add_probe_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    """Gives `protlm probe` its arguments."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = PROBE_EPILOG
    add = verb.add_argument
    add("--model", required=True, help=model_help)
    add_labels(verb)
    # fmt: off
    add("--heads", type=_words, metavar="A,B", help="default: the first two below")
    add("--layers", type=_layers, default="last", metavar="N,N",
        help="last (default), all, or numbers")
    add("--seeds", type=positive, default=3, metavar="N", help="default: 3")
    add("--train_proteins", type=_count, default=_DEFAULT_COUNT, metavar="N",
        help="default: 2500 (contacts: 20 chains); or all")
    add_rare_residues(verb)
    add_window(verb)
    add("--compute", choices=("fp32", "bf16"), default="fp32",
        help="in which the model computes; default: fp32")
    # fmt: on
    add("--output", type=Path, metavar="DIR", help="folder to write everything into")
    add("--maps", action="store_true", help="draw proteins and residues in two dimensions, too "
        "(PCA, t-SNE, UMAP): of 1,500 proteins this takes minutes")  # fmt: skip


def add_labels(verb: argparse.ArgumentParser) -> None:
    """Gives a verb the arguments that say what labels there are; see `benchmark_of`."""
    add = verb.add_argument
    data = verb.add_mutually_exclusive_group()
    data.add_argument(
        "--benchmark", default="secondary_structure", help="default: secondary_structure"
    )
    data.add_argument("--input", type=Path, metavar="FILE", help="your own labelled proteins")
    # fmt: off
    add("--targets", nargs="+", default=[], metavar="NAME",
        help="columns of --input to learn; NAME:number or NAME:classes says what they hold")
    add("--multilabel", nargs="+", default=[], metavar="NAME",
        help="columns to learn whose cells hold several labels, separated by | or ;")
    add("--split", nargs="+", default=[], metavar="WORD",
        help="column that divides the proteins of --input, and what its words mean "
        "(train=A,B valid=C test=D); or random")
    add("--labels", nargs="+", type=Path, default=[], metavar="FILE",
        help="of the residues of a FASTA file; of several files each is a target")
    add("--mask", type=Path, metavar="FILE", help="which of these labels count")
    add("--data_dir", type=Path, metavar="DIR", help="where benchmarks' files lie")
    # fmt: on


def add_predict_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    """Gives `protlm predict` its arguments."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = PREDICT_EPILOG
    verb.add_argument(
        "--probe", type=Path, metavar="DIR",
        help="of `protlm probe`; default: the head of --model, a run of `protlm finetune`",
    )  # fmt: skip
    verb.add_argument("--model", required=True, help=model_help)
    verb.add_argument("--input", required=True, type=Path, metavar="FILE", help="FASTA")
    verb.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="FILE.csv or FILE.fasta"
    )
    add_rare_residues(verb)
    add_window(verb)


def run_probe(arguments: argparse.Namespace, load: Callable[[str], LoadedModel]) -> None:
    """Probes the model that `load` reads, prints the numbers and writes them."""
    from protlm_jax.errors import ProtlmError
    from protlm_jax.evaluation import maps, verbs
    from protlm_jax.evaluation.probes import results, run

    benchmark = benchmark_of(arguments)
    if benchmark.level == "pair":
        _run_contacts(arguments, benchmark, load)
        return
    if arguments.maps:
        if arguments.output is None:
            raise ProtlmError("--maps draws into a folder: name it with --output")
        maps.require_packages()
    loaded = verbs.with_residues(load(arguments.model), arguments.rare_residues)
    probed = run.run(
        loaded,
        benchmark,
        heads=arguments.heads,
        layers=arguments.layers,
        seeds=arguments.seeds,
        train_proteins=_count_or(arguments.train_proteins, run.TRAIN_PROTEINS),
        window=_window(loaded, arguments),
        compute="bfloat16" if arguments.compute == "bf16" else "float32",
        seed=verbs.SEED,
        say=lambda line: print(line, flush=True),
        progress=True,
    )
    print(results.summary(probed.result))
    verbs.say_rare(loaded)
    if arguments.output is not None:
        _write(probed, loaded, benchmark, arguments)


def _run_contacts(
    arguments: argparse.Namespace, benchmark: Benchmark, load: Callable[[str], LoadedModel]
) -> None:
    """Contacts are read from attention maps."""
    from protlm_jax.errors import ProtlmError
    from protlm_jax.evaluation import results, verbs
    from protlm_jax.evaluation.contacts.run import TRAIN_PROTEINS, run, summary

    read_otherwise = arguments.layers != "last" or arguments.compute != "fp32"
    if arguments.heads or arguments.window or read_otherwise or arguments.maps:
        raise ProtlmError(
            f"{benchmark.title} are read from all attention maps at once, in fp32: leave out "
            "--heads, --layers, --window, --compute and --maps"
        )
    train = _count_or(arguments.train_proteins, TRAIN_PROTEINS)
    if train is None:
        train = len(benchmark.splits["train"]())
    loaded = verbs.with_residues(load(arguments.model), arguments.rare_residues)
    result = run(loaded, benchmark, train_proteins=train, seed=verbs.SEED)
    print(summary(result))
    verbs.say_rare(loaded)
    if arguments.output is not None:
        results.save(result, arguments.output / "results.nc")
        command = f"protlm probe --model {arguments.model} --benchmark {benchmark.name}"
        _report(arguments.output, result, command, {"contacts": result})
        print(f"wrote {arguments.output}: report.html, results.nc")


def run_predict(
    arguments: argparse.Namespace,
    load: Callable[[str], LoadedModel],
    load_tuned: Callable[[str, Callable[[str], LoadedModel]], TunedModel],
) -> int:
    """Applies a probe or a fine-tuned model, prints what was done, and returns the exit code."""
    from protlm_jax.evaluation import verbs
    from protlm_jax.evaluation.probes import saved
    from protlm_jax.evaluation.probes.predicting import predict_file

    probe: Any
    if arguments.probe is None:
        tuned = load_tuned(arguments.model, load)
        loaded = verbs.with_residues(tuned.loaded, arguments.rare_residues)
        about = tuned.about | ({"window": arguments.window} if arguments.window else {})
        probe = dataclasses.replace(tuned, loaded=loaded, about=about)
    else:
        probe = saved.load(arguments.probe)
        saved.require_reading(probe, arguments.rare_residues, arguments.window)
        rare: Rare = "error" if arguments.rare_residues == "error" else probe.rare_residues
        loaded = verbs.with_residues(load(arguments.model), rare)
    outcome = predict_file(
        loaded, probe, arguments.input, arguments.output, policy=loaded.policy, progress=True
    )
    print(outcome.summary)
    verbs.say_rare(loaded)
    return 3 if outcome.failed else 0


def benchmark_of(arguments: argparse.Namespace) -> Benchmark:
    """The labelled proteins that the arguments of `add_labels` name; prints the reader's notes."""
    from protlm_jax.errors import ProtlmError
    from protlm_jax.evaluation import probe_data

    of_columns = {name: getattr(arguments, name) for name in ("targets", "multilabel", "split")}
    if arguments.input is not None:
        own = probe_data.read_own(arguments.input, arguments.labels, arguments.mask, **of_columns)
        print("\n".join(own.notes), flush=True)
        return own
    if arguments.labels or arguments.mask:
        raise ProtlmError("--labels and --mask belong to a FASTA file: name it with --input")
    if any(of_columns.values()):
        raise ProtlmError("--targets, --multilabel, --split belong to a table: name it by --input")
    return probe_data.load(arguments.benchmark, arguments.data_dir)


def _write(
    probed: Probed, loaded: LoadedModel, benchmark: Benchmark, arguments: argparse.Namespace
) -> None:
    """The folder: numbers and heads first, then what is drawn from them."""
    from protlm_jax.evaluation import maps, results
    from protlm_jax.evaluation.probes import saved
    from protlm_jax.evaluation.probes.results import table

    folder, result = arguments.output, probed.result
    results.save(result, folder / "results.nc")
    table(result).csv(folder / "scores.csv")
    saved.save(probed, loaded, folder / "probe")
    command = f"protlm probe --model {arguments.model}"
    sections: dict[str, Any] = {"probe": result}
    if arguments.maps:
        print("drawing maps", flush=True)
        window = result.attrs["window"] or None
        sections["maps"] = maps.draw(loaded, benchmark, window=window, progress=True)
        maps.write_tables(folder / "maps", sections["maps"])
    _report(folder, result, command, sections)
    made = ", maps/" if arguments.maps else ""
    print(f"wrote {folder}: report.html, results.nc, scores.csv, probe/{made}")


def _report(folder: Path, result: xarray.Dataset, command: str, results: Mapping[str, Any]) -> None:
    from protlm_jax import report

    about = {name: result.attrs[name] for name in ("title", "seconds")} | {"command": command}
    report.write(folder / "report.html", {"run": about, **results})


def _window(loaded: LoadedModel, arguments: argparse.Namespace) -> int:
    """Residues read at once: `--window`, or the model's own, as far as memory reaches."""
    from protlm_jax.evaluation import verbs
    from protlm_jax.evaluation.embedding.embedder import resolve_window
    from protlm_jax.evaluation.embedding.spec import resolve_layers

    if arguments.window is not None:
        return int(arguments.window)
    layers = len(resolve_layers(loaded, arguments.layers))
    return min(verbs.window_of(loaded), resolve_window(loaded, None, layers))


def _count_or(count: int | None, default: int) -> int | None:
    return default if count == _DEFAULT_COUNT else count


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _layers(text: str) -> str | list[int]:
    if text in ("last", "all"):
        return text
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write last, all, or numbers such as 0,6,12"
        ) from None


def _count(text: str) -> int | None:
    return None if text == "all" else positive(text)
