"""The verb `protlm embed`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protlm_jax.errors import ProtlmError
from protlm_jax.verbs.arguments import add_rare_residues, add_window, positive

if TYPE_CHECKING:
    from protlm_jax.models import LoadedModel

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

EPILOG = """\
typical use:
  protlm embed --model runs/mine --input proteins.fasta --output e.h5
  protlm embed --model hf/prot_t5 --input uniprot.fasta.gz --output e.h5 \\
      --vectors residues mean --dtype fp16
  protlm embed --model runs/mine --input proteins.fasta --output e.parquet --layers 0 6 12

vectors: residues, one vector for each residue; or one for the protein: mean or max over
  its residues, or cls, the classification token of models that have one. Special tokens and
  padding are left out of all but cls. A protein's numbers do not depend on what else is in
  the file. The default is residues for .h5 and mean for .parquet.

layers: 0 is the embedding of the tokens before the first block, i is what the first i
  blocks have made of it, and the last, which is the default, is the output, after the final
  norm where the model has one: the hidden_states of transformers. -1 is the last, too. Of
  an encoder-decoder it is the encoder that is read.

output: .h5 or .hdf5 has one data set for each protein, with its name as the attribute
  original_id: [residues, d_model] or [d_model], and [layers, ...] where several are asked for.
  Its key is the protein's place in the input (from 0), so that double names are kept. Others
  look up keys of their own (docs/exports.md): --keys biotrainer for biotrainer from 1.0, --keys
  md5 for TMbed, both sums of the letters as they are written, under which equal proteins are
  written once, with the names of the others in e.h5.json; --keys id is the name, for EAT,
  which must occur once and have no /. Of several kinds of vectors each has a file:
  e.residues.h5, e.mean.h5. bf16 reads as fp32. .parquet has one row for each protein, and a
  column for each kind and layer of vectors. Order is kept. e.h5.json beside it says how it
  was made, which proteins were read through windows, which records have no embedding, and
  why, and the digest of each file.

long proteins: what does not fit at once is read through windows that overlap by half, and
  each residue is taken from the window in which it is farthest from a cut. A mean or max is
  over all its residues; cls is the mean of the windows' tokens, weighed by the residues taken
  from each. Nothing is cut off. A window is as long as a row of a run's training, or as the
  folder says (ESM-2: 1,022 residues); otherwise at most 4,096 tokens; and no more
  than its position table and the memory of the device hold. --window N sets it.

The same command again goes on after a kill: results wait in e.h5.work until the output is
whole, in all at most twice its size. An output that is there already is compared with
e.h5.json first: there is nothing to do where it is what was written from the same input, model
and settings; anything else is an error. A second process on one output is refused. The exit
code is 0 when every record was embedded, 3 when some were not, 1 on errors.
"""


def add_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = EPILOG
    verb.add_argument("--model", required=True, help=model_help)
    verb.add_argument(
        "--input", required=True, type=Path, metavar="FILE", help="FASTA, plain or compressed"
    )
    verb.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="FILE.h5 or FILE.parquet"
    )
    verb.add_argument(
        "--vectors", nargs="+", choices=("residues", "mean", "max", "cls"), help="see below"
    )
    verb.add_argument(
        "--layers", nargs="+", default=["last"], metavar="N", help="last (default), all, or numbers"
    )
    verb.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of what is written; default: fp32"
    )
    verb.add_argument(
        "--compute", choices=("fp32", "bf16"), default="fp32",
        help="in which the model computes; default: fp32",
    )  # fmt: skip
    add_rare_residues(verb)
    add_window(verb)
    verb.add_argument(
        "--tokens_per_batch", type=positive, metavar="N",
        help="with padding, on each device; default: what suits it and fits",
    )  # fmt: skip
    verb.add_argument(
        "--keys", choices=("number", "id", "biotrainer", "md5"), default="number",
        help="of the data sets in .h5; default: number",
    )  # fmt: skip
    verb.add_argument("--devices", type=positive, metavar="N", help="how many to use; default: all")


def run(arguments: argparse.Namespace, load: Callable[[str], LoadedModel]) -> int:
    """Embeds with the model that `load` reads, prints the summary, and returns the exit code."""
    from protlm_jax.evaluation import verbs
    from protlm_jax.evaluation.embedding import formats
    from protlm_jax.evaluation.embedding.files import embed_file
    from protlm_jax.evaluation.embedding.spec import EmbeddingSpec, resolve_layers

    loaded = verbs.with_residues(load(arguments.model), arguments.rare_residues)
    default = "mean" if arguments.output.suffix in formats.PARQUET else "residues"
    spec = EmbeddingSpec(
        resolve_layers(loaded, _layers(arguments.layers)),
        tuple(arguments.vectors or [default]),
        DTYPES[arguments.dtype],  # type: ignore[arg-type]
    )
    outcome = embed_file(
        loaded,
        arguments.input,
        arguments.output,
        spec,
        compute=DTYPES[arguments.compute],  # type: ignore[arg-type]
        window=arguments.window,
        trained=verbs.row_of(loaded),
        tokens_per_batch=arguments.tokens_per_batch,
        devices=arguments.devices,
        policy=loaded.policy,
        keys=arguments.keys,
        say=lambda line: print(line, flush=True),
        progress=True,
    )
    print(outcome.summary)
    verbs.say_rare(loaded)
    return 3 if outcome.failed else 0


def _layers(words: list[str]) -> str | list[int]:
    if len(words) == 1 and words[0] in ("last", "all"):
        return words[0]
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ProtlmError(
            f"--layers {' '.join(words)}: write last, all, or numbers such as 0 6 12"
        ) from None
