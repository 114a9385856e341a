"""The verb `protlm score`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protlm_jax.errors import ProtlmError
from protlm_jax.verbs.arguments import add_rare_residues, add_window, positive

if TYPE_CHECKING:
    from protlm_jax.models import LoadedModel

EPILOG = """\
proteins (a FASTA file): one row each, in the order of the file, in nats.
  What is summed depends on the model. BERT and its kin: each residue masked alone
  (pseudo-likelihood; `perplexity` is the pseudo-perplexity). XLNet: the same through
  its query stream. T5: each residue hidden alone from the encoder while the decoder
  is fed the true residues before it; not comparable with pseudo-perplexity.
  Transformer-XL: the exact likelihood, whatever the length. X is context, not scored.

variants (a table: CSV, TSV or semicolons) of a wild type:
  column `mutant`: A42G, Ala42Gly or p.Ala42Gly, several joined by : , ; / + or spaces;
  A42del, A42_L50del, A42_L43insGP, A42_L50delinsGP, A42dup; WT or nothing (score 0); or
  the mutant's whole sequence. Column `mutated_sequence`: the mutant's sequence, alone or
  beside its mutations. --columns says which they are where they have other names.
  The wild type comes from --wildtype wt.fasta (with several proteins in it, the column
  `wildtype` names one), from a sequence in a column `wildtype` or `sequence`, or from
  `mutated_sequence` and its substitutions. ProteinGym's files work as they are (those of
  insertions and deletions with --wildtype), and where there is a DMS_score, Spearman's
  correlation is reported.

  The score is positive where the model prefers the mutant. Strategies for substitutions
  sum log p(mutant residue) - log p(wild-type residue) over the mutated positions:
    masked-marginals           all mutated positions masked together (Meier et al. 2021);
                               where they do not fit one window of the model, the sum
                               over windows, each with its own positions masked
    masked-marginals-additive  each masked alone: the sum of the single mutants' scores,
                               as ProteinGym's and ESM's scripts compute
    wildtype-marginals         none masked, one pass for all variants (masked models)
  For all variants, and always for insertions and deletions:
    likelihood-ratio           log-likelihood of the mutant - that of the wild type, as
                               defined above for proteins, summed over all residues, not
                               their mean. Exact for causal models; otherwise one row of
                               the model for each residue of each mutant, which is slow.
                               (For insertions and deletions ProteinGym takes the mutant's
                               pseudo-perplexity or log-likelihood alone; the difference
                               ranks the mutants of one wild type as the sum does.)
  The two kinds are on different scales. The column `method` says what each row has.

--proteingym DIR scores all assays of ProteinGym in a folder that holds its reference file
  (DMS_substitutions.csv; with --indels DMS_indels.csv) and the assays' files, as they are
  after unpacking, up to two folders deep. The default strategy is ProteinGym's own,
  masked-marginals-additive. OUTPUT is then a folder: assays/DMS_ID.csv is each assay's
  table with its scores; assays.csv has Spearman's correlation and AUC of each; summary.csv
  has the official mean (assays of a protein, proteins of a function class, classes) and
  those by function class, MSA depth, taxon and number of mutations. What cannot be used (a
  missing file or wild type, a mutant outside of the sequence, one class alone) is named,
  the rest goes on, and the exit code is 3. The same command again goes on after a kill.

--exit N reads the model after its first N layers, where its own head is put on the stream
  (the logit lens): scores by depth.

Longer proteins than the model was trained on are shown through windows around each
residue, and listed. Records that cannot be scored keep their row, with the reason in the
column `error`; exit code 3 says that there are some. The same command again goes on after
a kill: scores wait in OUTPUT.work until the table is written.
"""


def add_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = EPILOG
    verb.add_argument("--model", required=True, help=model_help)
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", type=Path, help="FASTA file or table, see below")
    what.add_argument("--proteingym", type=Path, metavar="DIR", help="ProteinGym's folder")
    verb.add_argument("--indels", action="store_true", help="its insertions and deletions")
    verb.add_argument("--output", required=True, type=Path, help="CSV file, or folder, to write")
    verb.add_argument("--exit", type=positive, metavar="N", help="the model's first N layers alone")
    verb.add_argument("--wildtype", type=Path, help="FASTA file with the variants' wild type(s)")
    verb.add_argument(
        "--strategy",
        choices=(
            "masked-marginals", "masked-marginals-additive", "wildtype-marginals",
            "likelihood-ratio",
        ),
        help="of variants; default: masked-marginals, for causal models likelihood-ratio",
    )  # fmt: skip
    verb.add_argument(
        "--columns", metavar="ROLE=NAME,...",
        help="columns of variants that have other names, as in mutant=Variant,DMS_score=fitness; "
        "roles: mutant, mutated_sequence, wildtype, sequence, DMS_score",
    )  # fmt: skip
    verb.add_argument(
        "--offset", type=int, default=0, metavar="N",
        help="added to the positions of mutations: -238 where residue 239 of the numbering is the "
        "first of the wild type",
    )  # fmt: skip
    verb.add_argument(
        "--softmax", choices=("residues", "vocabulary"), default="residues",
        help="probabilities over the 20 amino acids (default), or over all tokens of the model",
    )  # fmt: skip
    add_rare_residues(verb)
    add_window(verb)


def run(arguments: argparse.Namespace, load: Callable[[str], LoadedModel]) -> int:
    """Scores with the model that `load` reads, prints the summary, and returns the exit code."""
    from protlm_jax.evaluation import verbs
    from protlm_jax.evaluation.scoring.files import Scoring, score_file
    from protlm_jax.evaluation.scoring.proteingym import score_benchmark
    from protlm_jax.evaluation.scoring.table import parse_columns
    from protlm_jax.models.pruning import exited

    of_tables = (arguments.wildtype, arguments.columns, arguments.offset or None)
    if arguments.proteingym and any(given is not None for given in of_tables):
        raise ProtlmError("--wildtype, --columns and --offset belong to --input")
    if arguments.indels and not arguments.proteingym:
        raise ProtlmError("--indels belongs to --proteingym")
    columns = parse_columns(arguments.columns) if arguments.columns else None
    loaded = verbs.with_residues(load(arguments.model), arguments.rare_residues)
    verbs.require_answers(loaded, verbs.data_of(arguments.model))
    if arguments.exit:
        loaded = exited(loaded, arguments.exit)
    length = verbs.row_of(loaded, arguments.window)
    if arguments.proteingym:
        outcome = score_benchmark(
            Scoring(loaded, arguments.output, length, arguments.softmax, True),
            arguments.proteingym,
            indels=arguments.indels,
            strategy=arguments.strategy,
            policy=loaded.policy,
        )
    else:
        outcome = score_file(
            loaded,
            arguments.input,
            arguments.output,
            length=length,
            softmax=arguments.softmax,
            columns=columns,
            offset=arguments.offset,
            strategy=arguments.strategy,
            wildtype=arguments.wildtype,
            policy=loaded.policy,
            progress=True,
        )
    print(outcome.summary)
    verbs.say_rare(loaded)
    return 3 if outcome.failed else 0
