"""The verb `protlm prepare`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protlm_jax.data.prepare.plan import PreparePlan
    from protlm_jax.data.prepared import Prepared

DATASETS = ("uniref50", "uniref90", "uniref100", "bfd", "fasta")

EPILOG = """\
typical use:
  protlm prepare --dataset fasta --input my.fasta.gz --output data/mine --tokens
  protlm prepare --dataset uniref50 --release 2024_01 --input uniref50.fasta.gz \\
      --output data/uniref50 --tokens --dry_run
  protlm prepare --dataset uniref100 --release 2024_01 --input uniref100.xml.gz \\
      --output data/uniref100 --tokens --heldout_from data/uniref50
  protlm train --config configs/tiny.py:bert --workdir runs/mine --config.data.prepared=data/mine

input: FASTA or UniRef XML, plain or gz, bz2, xz, zst, local or a URL (gs://, https://).
  --dataset fasta takes any FASTA file; the others also check that names are theirs. Only
  UniRef's XML names the UniRef50 cluster of a protein of UniRef90 and UniRef100.

output: one folder. With --tokens, token files, which training reads without TensorFlow,
  packed again in every epoch: the choice for most runs. With --records (the default without
  --tokens), TFRecord files for TensorFlow Datasets, SeqIO and T5X. manifest.json lists
  its content, what was left out and why, and the hash of each file.

held out: a share of all proteins, by a hash of the sequence. Or, with --heldout_from, what
  an earlier folder held out: the same sequences, members of the same UniRef50 clusters
  where the release is the same, and whatever else resembles one of them (by MMseqs2, whose
  program mmseqs must be installed) is left out of both sides. So a model trained on this
  data can be evaluated on that folder's proteins.

The same command continues after a kill, and does nothing when all is done. Shards are
the same bytes for any number of workers. The exit code is 0 when every record was a
protein, 3 when some were not and --bad_records drop left them out, 1 on errors.
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Gives the verb its arguments."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = EPILOG
    verb.add_argument("--dataset", required=True, choices=DATASETS, help="what the input is")
    verb.add_argument(
        "--input", required=True, nargs="+", metavar="FILE", help="files, read in this order"
    )
    verb.add_argument("--release", default="", help="such as 2024_01; needed for UniRef")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make")
    verb.add_argument("--tokens", action="store_true", help="write token files")
    verb.add_argument("--records", action="store_true", help="write TFRecord files")
    verb.add_argument(
        "--dry_run", action="store_true",
        help="print the plan, and what it will take; make nothing",
    )  # fmt: skip
    _add_rules(verb)
    verb.add_argument("--workers", type=int, default=2, help="processes; default: 2")
    verb.add_argument(
        "--runner", choices=("direct", "beam"), default="direct",
        help="direct: this machine (default). beam: an Apache Beam pipeline, see --beam_options",
    )  # fmt: skip
    verb.add_argument(
        "--beam_options", default="", metavar="TEXT",
        help='flags for Beam, e.g. "--direct_num_workers=2 --direct_running_mode=multi_processing"',
    )  # fmt: skip


def _add_rules(verb: argparse.ArgumentParser) -> None:
    rules = verb.add_argument_group("which proteins")
    rules.add_argument("--min_length", type=int, default=1, help="residues; default: 1")
    rules.add_argument("--max_length", type=int, help="residues; default: no limit")
    rules.add_argument(
        "--rare_residues", choices=("X", "keep"), default="X",
        help="U, Z, O and B become X (default), or stay",
    )  # fmt: skip
    rules.add_argument(
        "--bad_records", choices=("error", "drop"), default="error",
        help="stop at a record that is no protein (default), or leave it out and count it",
    )  # fmt: skip
    rules.add_argument(
        "--keep_duplicates", action="store_true",
        help="keep proteins of equal sequence; default: the first of them",
    )  # fmt: skip
    rules.add_argument(
        "--heldout_percent", type=float, default=2.0, help="share held out; default: 2"
    )
    rules.add_argument(
        "--heldout_from", metavar="DIR", help="hold out what this prepared folder holds out"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the verb; returns 3 when records were left out because they were no proteins."""
    plan = _plan(arguments)
    if arguments.dry_run:
        from protlm_jax.data.prepare.estimate import to_text

        print(to_text(plan, arguments.workers))
        return 0
    prepared = _prepare(plan, arguments)
    print(summary(prepared))
    if count := prepared.manifest.get("nucleotides"):
        from protlm_jax.data.fasta import nucleotides_found

        read = prepared.manifest["read"]
        print(nucleotides_found(prepared.source, count, read), file=sys.stderr)
    return 3 if "bad_record" in prepared.manifest["dropped"] else 0


def _plan(arguments: argparse.Namespace) -> PreparePlan:
    from protlm_jax.data.prepare.plan import PreparePlan
    from protlm_jax.data.prepare.rules import SelectionRules

    rules = SelectionRules(
        min_length=arguments.min_length,
        max_length=arguments.max_length,
        rare_residues=arguments.rare_residues,
        bad_records=arguments.bad_records,
        deduplicate=not arguments.keep_duplicates,
        heldout_percent=arguments.heldout_percent,
        heldout_from=arguments.heldout_from,
        release=arguments.release,
    )
    return PreparePlan.make(
        arguments.dataset,
        arguments.input,
        arguments.output,
        rules,
        tokens=arguments.tokens,
        records=arguments.records or not arguments.tokens,
    )


def _prepare(plan: PreparePlan, arguments: argparse.Namespace) -> Prepared:
    if arguments.runner == "beam":
        from protlm_jax.data.prepare.beam import prepare_with_beam

        return prepare_with_beam(plan, arguments.beam_options)
    from protlm_jax.data.prepare.direct import prepare

    return prepare(plan, arguments.workers, progress=sys.stderr.isatty())


def summary(prepared: Prepared) -> str:
    """What is in a folder, and what was left out, in a few lines."""
    train, heldout = prepared.splits["train"], prepared.splits["heldout"]
    lines = [
        f"{prepared.folder}: {prepared.source}, {train.proteins:,} proteins to train on "
        f"({train.residues:,} residues), {heldout.proteins:,} held out"
    ]
    for reason, some in prepared.manifest["dropped"].items():
        more = ", ..." if some["count"] > len(some["examples"]) else ""
        lines.append(f"left out, {reason}: {some['count']:,} ({', '.join(some['examples'])}{more})")
    return "\n".join(lines)
