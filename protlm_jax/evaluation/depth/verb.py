"""The verb `protlm depth`: its arguments, what it prints, and what it writes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protlm_jax.verbs.arguments import add_rare_residues, add_window, positive

if TYPE_CHECKING:
    import xarray

    from protlm_jax.models import LoadedModel

EPILOG = """\
typical use:
  protlm depth --model runs/mine --output depth/mine
  protlm depth --model hf/esm2_8m --model hf/esm2_35m --input proteins.fasta --control \\
      --output depth/esm2
  protlm depth --model runs/mine --metrics erasure gradients tuned_lens --output depth/more

metrics: default is contributions, angles, similarity, logit_lens, skips, sublayer_skips,
  local_effects and swaps, about 2.3 forwards for each layer. all adds repeats,
  block_deletions, reversals, erasure, gradients and tuned_lens. What a family has no readout
  for is not measured, and the reason is given. docs/depth.md has every formula and source.

positions: asked, layers are edited everywhere and effects read at residues that the model
  cannot see (15 % of each protein); context, edited everywhere but there; visible, read at the
  other residues; all; future, edited before a cut and read behind it.

noise_levels: masked and diffusion models are measured once more at each of these shares of
  hidden residues, into noise.nc; of other families the reason why not is given.

DIR gets results.nc, every mean and its sums by protein as one xarray dataset (netCDF);
depth.csv, one row for each number with its 95 % interval (bootstrap over proteins);
claims.csv, what they show: each claim with its number, interval, threshold and verdict;
report.html; and digests.json, the digests of these files. The same command again goes on
after a kill. A second process on one DIR is refused.
"""
WORK = ".work"  # unfinished sums, below the output


def add_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    """Gives the verb its arguments."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = EPILOG
    verb.add_argument(
        "--model", required=True, action="append", help=f"{model_help}; several are compared"
    )
    verb.add_argument(
        "--input", type=Path, metavar="FILE", help="FASTA; default: proteins held out of training"
    )
    verb.add_argument(
        "--proteins", type=positive, default=64, metavar="N", help="drawn at most; default: 64"
    )
    verb.add_argument(
        "--metrics", nargs="+", default=["default"], metavar="NAME", help="default, all, or names"
    )
    verb.add_argument(
        "--positions", choices=("asked", "context", "visible", "all", "future"), default="asked",
        help="where layers are edited and effects read; default: asked",
    )  # fmt: skip
    verb.add_argument(
        "--noise_levels", nargs="+", type=_share, metavar="SHARE",
        help="measure masked and diffusion models also with these shares of each protein hidden, "
        "as in 0.1 0.5 0.9",
    )  # fmt: skip
    verb.add_argument(
        "--control", action="store_true", help="measure a re-initialised copy of each model too"
    )
    add_rare_residues(verb)
    add_window(verb)
    verb.add_argument("--output", type=Path, metavar="DIR", help="folder of the results")


def run(arguments: argparse.Namespace, load: Callable[[str], LoadedModel]) -> None:
    """Measures the models that `load` reads, prints what they say and writes the results."""
    found: list[xarray.Dataset] = []
    for source in arguments.model:
        for one in _measured(arguments, source, load, [x.attrs["model"] for x in found]):
            found.append(one)
    if arguments.output is not None:
        print("wrote " + ", ".join(map(str, _written(arguments, found))))


def _measured(
    arguments: argparse.Namespace, source: str, load: Callable[[str], LoadedModel],
    titles: Sequence[str],
) -> Iterator[xarray.Dataset]:  # fmt: skip
    """The stacks of a model and of its control, by levels of noise too."""
    from protlm_jax.evaluation import verbs
    from protlm_jax.evaluation.depth import files
    from protlm_jax.evaluation.depth.analyse import analyse
    from protlm_jax.evaluation.depth.metrics import resolve
    from protlm_jax.evaluation.depth.results import undefined

    words = arguments.metrics
    metrics = resolve(words[0] if words in (["default"], ["all"]) else words)
    loaded, data = verbs.with_residues(load(source), arguments.rare_residues), verbs.data_of(source)
    verbs.require_answers(loaded, data)
    sequences = verbs.drawn(data, arguments.proteins, arguments.input, loaded.policy)
    verbs.say_rare(loaded)
    name = _name(source, ["results", "noise", *titles])
    models = {name: loaded}
    if arguments.control:
        fresh = loaded.reinitialised(0, f"{loaded.name}, re-initialised")
        models[f"{name}-reinitialised"] = fresh
    for title, model in models.items():
        print(f"{title}: {len(sequences)} proteins", flush=True)
        measure = functools.partial(
            analyse, model, sequences, metrics=metrics, positions=arguments.positions,
            length=verbs.row_of(loaded, arguments.window), progress=True,
            folder=arguments.output and arguments.output / WORK / title,
        )  # fmt: skip
        about = {"model": title, "control_of": "" if title == name else name}
        own = [one.assign_attrs(about) for one in measure().values()]
        for one in own:
            print(f"\n{files.text(one)}", flush=True)
        levels = []
        if arguments.noise_levels and (reason := model.model.readouts[0].why_no_noise) is None:
            print(f"{title}: by level of noise", flush=True)
            levels = list(measure(noise_levels=arguments.noise_levels).values())
        elif arguments.noise_levels:
            print(f"{title}: levels of noise are not defined, {reason}", flush=True)
            for one in own:
                one.attrs["undefined"] = json.dumps(undefined(one) | {"noise_levels": reason})
        yield from own
        yield from (one.assign_attrs(model=title) for one in levels)


def _written(arguments: argparse.Namespace, found: list[xarray.Dataset]) -> list[Path]:
    """The files of a study: results, tables, the report, and the digests of all of them."""
    from protlm_jax import report
    from protlm_jax.evaluation.depth import files
    from protlm_jax.storage.digests import SEAL, seal

    folder = arguments.output
    written, page = files.write(found, folder), folder / "report.html"
    seconds = {x.attrs["model"]: x.attrs["seconds"] for x in found}
    trained = list(dict.fromkeys(x.attrs["model"] for x in found if not x.attrs.get("control_of")))
    about = {
        "title": f"{trained[0]}, layer by layer" if len(trained) == 1 else "Models, layer by layer",
        "models": list(seconds),
        "input": str(arguments.input or "proteins held out of training"),
        "metrics": arguments.metrics,
        "positions": found[0].attrs["positions"],
        "seconds": sum(seconds.values()),
    }
    seal(folder, only=written)
    for title in seconds:
        shutil.rmtree(folder / WORK / title, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds something else
        (folder / WORK).rmdir()
    report.write(page, {"depth": found, "run": about})
    return [*written, page, folder / SEAL]


def _name(source: str, taken: Sequence[str]) -> str:
    """A file's name for a model: the last part of its path."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).resolve().name) or "model"
    names = [base, *(f"{base}-{i}" for i in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
