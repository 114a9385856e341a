"""Tokens per second that reach a model, against transformers' collator.

    python benchmarks/input_pipeline.py [--fasta uniref50.fasta.gz] [--rows 128] [--seconds 2]

Counted are the tokens that are not padding. The proteins (the bundled ones, if no file is given)
are prepared with token files and records into a temporary folder first; that is not timed. Rounds
are interleaved, because the machine's speed drifts; ratios are between medians. Each road first
gives a few batches that are not timed, since it works ahead while another one has its turn.

The peer is `transformers.DataCollatorForLanguageModeling` with its tokenizer, which pads and masks
batches of 64 proteins that were tokenized and cut to the row beforehand. (Our rows of `tokens` are
masked inside the training step, those of `prott5` here.)

Then, for each recipe: the tokens per second that one TPU v3-8 host needs where its cores reach half
of their peak, from the model's FLOPs, and how many times as many each road gives on this machine.

On a machine that others use, `--cpu_time` counts processor time of all threads instead of the clock
and shows what one core gives.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from protlm_jax import bundled
from protlm_jax.config.recipes import load_recipe
from protlm_jax.config.run import RunConfig
from protlm_jax.data.config import DataConfig, Task
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.splits import load_records
from protlm_jax.huggingface.tokenizers import write_tokenizer
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.objectives import build_objective
from protlm_jax.training.hardware import peak_flops
from protlm_jax.vocabularies import PROT_BERT, PROT_T5, PROT_TXL, get_vocabulary

LENGTH = 512
PEER = "transformers collator"
VOCABULARIES = {"tokens": PROT_BERT, "prott5": PROT_T5, "span3": PROT_T5, "stream": PROT_TXL}
TASKS: dict[str, tuple[Task, ...]] = {
    "seqio": ("tokens", "prott5", "span3"),
    "fasta": ("tokens",),
    "token files": ("tokens", "prott5", "span3", "stream"),
}
AIMS = {  # millions of tokens per second, by the clock on two cores
    "seqio tokens": 3.0,
    "seqio prott5": 1.5,
    "seqio span3": 1.5,
    "fasta tokens": 50.0,
    "token files tokens": 50.0,
}
WARM = 8  # batches before the clock runs
CORES = 8
MFU = 0.5

Step = tuple[int, int]
"""Tokens of a batch that are not padding, and all."""


def ours(config: DataConfig, rows: int) -> Iterator[Step]:
    """Batches of one road."""
    vocabulary = VOCABULARIES[config.task]
    batches = open_batches(config, vocabulary, split="train", seed=0, batch_size=rows)
    for batch in batches:
        # Of an encoder-decoder one side is counted: a token stands for a position of both.
        ids = batch["segment_ids" if "segment_ids" in batch else "encoder_segment_ids"]
        yield int(np.count_nonzero(ids)), ids.size


def through_seqio(prepared: Prepared, task: str, rows: int) -> Iterator[Step]:
    """Batches of the SeqIO task over records, packed as for T5X."""
    from protlm_jax.data.records import RecordSource
    from protlm_jax.data.runtime import seqio
    from protlm_jax.data.seqio_features import EncoderDecoderConverter, SingleStackConverter
    from protlm_jax.data.seqio_tasks import make_task

    shards = prepared.splits["train"].records
    files = [str(prepared.require(shard)) for shard in shards]
    source = RecordSource(lambda split: files, ["train"])
    made = make_task("benchmark", source, task, VOCABULARIES[task])
    batches = seqio.get_dataset(
        made,
        task_feature_lengths=dict.fromkeys(made.output_features, LENGTH),
        dataset_split="train",
        num_epochs=None,
        feature_converter=(SingleStackConverter if task == "tokens" else EncoderDecoderConverter)(),
        seed=0,
        batch_size=rows,
    )
    for batch in batches.as_numpy_iterator():
        ids = batch["segment_ids" if "segment_ids" in batch else "encoder_segment_ids"]
        yield int(np.count_nonzero(ids)), ids.size


def theirs(fasta: str | None) -> Iterator[Step]:
    """Batches of the collator."""
    import transformers

    records = load_records(DataConfig(fasta=fasta), "train")
    encoded = [PROT_BERT.encode(r.sequence[: LENGTH - 2]).tolist() for r in records]
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(PROT_BERT, Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    order = np.random.default_rng(0)
    while True:
        chosen = order.integers(0, len(encoded), 64)
        batch = collate([{"input_ids": encoded[i]} for i in chosen])
        yield sum(len(encoded[i]) for i in chosen), batch["input_ids"].numel()


def roads(fasta: str | None, folder: Path, rows: int) -> dict[str, Iterator[Step]]:
    """All that is compared."""
    source = fasta or str(bundled.path("pretraining"))
    rules = SelectionRules(bad_records="drop")
    both = PreparePlan.make("fasta", [source], folder / "both", rules, tokens=True, records=True)
    prepared = prepare(both)
    found = {PEER: theirs(fasta)}
    found |= {f"seqio {task}": through_seqio(prepared, task, rows) for task in TASKS["seqio"]}
    where = {
        "fasta": DataConfig(fasta=fasta, length=LENGTH),
        "token files": DataConfig(prepared=str(both.output), length=LENGTH),
    }
    for road, config in where.items():
        for task in TASKS[road]:
            found[f"{road} {task}"] = ours(replace(config, task=task), rows)
    return found


def measure(steps: Iterator[Step], seconds: float, cpu_time: bool) -> tuple[float, float]:
    """Tokens per second, and the share of tokens that are not padding."""
    clock = time.process_time if cpu_time else time.perf_counter
    for _ in itertools.islice(steps, WARM):
        pass
    began, tokens, size = clock(), 0, 0
    while (passed := clock() - began) < seconds:
        used, whole = next(steps)
        tokens, size = tokens + used, size + whole
    return tokens / passed, tokens / size


def need(config: RunConfig) -> float:
    """Tokens per second of one v3-8 host at `MFU`."""
    vocabulary = get_vocabulary(config.model.vocabulary)
    objective = build_objective(config.objective.name, vocabulary, **config.objective.options)
    length = config.data.length
    flops = training_flops_per_token(config.model, length, objective.queries(length))
    return MFU * CORES * peak_flops("TPU v3") / flops


def headroom(rates: dict[str, float]) -> None:
    """Prints, for every phase of every recipe, what it needs and how much more there is."""
    names = ("token files", "seqio")
    print("\n| recipe, phase | task | tokens/s per v3-8 | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for file in sorted(Path("configs").glob("*_*.py")):
        for phase in load_recipe(str(file), ["data.prepared=unread"], Path("runs/none")):
            task, needed = phase.config.data.task, need(phase.config)
            given = [rates.get(f"{name} {task}") for name in names]
            cells = [f"{rate / needed:,.0f} x" if rate else "-" for rate in given]
            name = "/".join(filter(None, (file.stem, phase.name)))
            print(f"| {name} | {task} | {needed:,.0f} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", help="proteins to read; default: the bundled ones")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu_time", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        contestants = roads(arguments.fasta, Path(folder), arguments.rows)
        for _ in range(arguments.rounds):
            for name, steps in contestants.items():
                result = measure(steps, arguments.seconds, arguments.cpu_time)
                found.setdefault(name, []).append(result)
    rates = {name: float(np.median([rate for rate, _ in f])) for name, f in found.items()}
    clock = "processor time" if arguments.cpu_time else "the clock"
    print(f"rows of {LENGTH}, batches of {arguments.rows}; tokens per second by {clock}\n")
    print("| road | million tokens/s | aim | rows filled | speed / transformers |")
    print("|---" * 5 + "|")
    for name, rate in rates.items():
        filled = np.mean([share for _, share in found[name]])
        aim = f"{AIMS[name]:g}" if name in AIMS else "-"
        print(f"| {name} | {rate / 1e6:.2f} | {aim} | {filled:.1%} | {rate / rates[PEER]:.1f} |")
    headroom(rates)


if __name__ == "__main__":
    main()
