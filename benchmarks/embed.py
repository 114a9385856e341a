"""Proteins embedded per second, against transformers + torch with the same weights and proteins.

    python benchmarks/embed.py [--shape esm2|esm2_650m|t5] [--model FOLDER] [--fasta FILE]
                               [--proteins 200] [--longest 2000] [--rounds 3] [--memory]
    python benchmarks/embed.py --precision [--q3] [--model FOLDER] [--fasta FILE] [--proteins 8]

Two ways in torch: (a) proteins sorted by length and padded to the longest of a batch, batches
filled up to a budget of residues, which is how it is done well; (b) one protein at a time, which is
how most scripts do it. All read whole proteins, make one vector per residue on the host, and give
the same numbers. Tokens are made beforehand for torch, and within the time for us. Rounds are
interleaved, because the machine's speed drifts; ratios are between medians, and the time of our
first pass, with its compilations, stands beside them. With --rounds 0 the first pass is all there
is, ours with its compilations: for many proteins.

--model takes a Hugging Face folder of an ESM-2 or T5; without it, weights of the shape are random:
esm2 is the published 8M, t5 an encoder like ProtT5's, 1/4 as wide and deep. --memory embeds the
proteins once and four times over into an HDF5 file, and prints the peak memory of both.

--precision measures something else: how far bf16 is from fp32, ||b - f|| / ||f||, for --model, or
for one model of every family, of random weights and 6 layers of width 256. --q3 adds what it does
to Q3 on TS115: linear heads on the last layer, trained on 100 proteins, in both.

On a machine that others use, compare processor time on one core:

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/embed.py --cpu_time
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from protlm_jax import bundled, models
from protlm_jax.data.fasta import read_fasta
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.engine import for_reading
from protlm_jax.huggingface import export, load_model
from protlm_jax.models import LoadedModel
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.vocabularies import get_vocabulary

SHAPES = {
    "esm2": models.preset("esm2_8m"),
    "esm2_650m": models.preset("esm2_650m"),
    "t5": t5_config(
        d_model=256, num_layers=6, num_decoder_layers=1, num_heads=8, head_dim=64, d_ff=4096
    ),
}
MEMORY = """
import json, resource, sys
from pathlib import Path
from protlm_jax import cli
assert cli.main(sys.argv[1:]) == 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
output = Path(sys.argv[sys.argv.index("--output") + 1])
print(json.dumps({"peak": peak, "output": output.stat().st_size}))
"""
WIDER = {"d_model": 256, "num_layers": 6, "num_heads": 8, "head_dim": 32, "d_ff": 1024}
Proteins = dict[str, str]
Run = Callable[[], Iterator[tuple[str, np.ndarray]]]


def ours(loaded: LoadedModel, proteins: Proteins) -> Run:
    longest = max(map(len, proteins.values()))
    stream = embed_sequences(loaded, proteins, window=longest)
    shapes = ", ".join(f"{s.rows} x {s.length}" for s in stream.embedder.shapes)
    print(f"{len(stream.embedder.shapes)} compilations: {shapes}")
    return lambda: iter(stream)


def theirs(folder: Path, loaded: LoadedModel, proteins: Proteins, residues: int | None) -> Run:
    """transformers' encoder on batches of so many residues; None for one protein at a time."""
    import torch
    import transformers

    kind = transformers.T5EncoderModel if loaded.config.family == "t5" else transformers.AutoModel
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = kind.from_pretrained(folder).eval().to(device)
    vocabulary = loaded.vocabulary
    before = len(vocabulary.prefix_ids)
    tokens = {name: vocabulary.encode(s) for name, s in proteins.items()}
    batches = _by_residues(proteins, residues) if residues else [[name] for name in proteins]

    def run() -> Iterator[tuple[str, np.ndarray]]:
        for names in batches:
            length = max(len(tokens[name]) for name in names)
            ids = np.full((len(names), length), vocabulary.pad_id)
            mask = np.zeros((len(names), length), np.int64)
            for row, name in enumerate(names):
                ids[row, : len(tokens[name])] = tokens[name]
                mask[row, : len(tokens[name])] = 1
            with torch.inference_mode():
                inputs = (torch.from_numpy(x).to(device) for x in (ids, mask))
                hidden = model(*inputs).last_hidden_state.cpu().numpy()
            for row, name in enumerate(names):
                yield name, hidden[row, before : before + len(proteins[name])]

    return run


def _by_residues(proteins: Proteins, residues: int) -> list[list[str]]:
    """Longest first; a batch is full when its residues with padding pass the budget."""
    batches: list[list[str]] = [[]]
    for name in sorted(proteins, key=lambda n: -len(proteins[n])):
        if batches[-1] and (len(batches[-1]) + 1) * len(proteins[batches[-1][0]]) > residues:
            batches.append([])
        batches[-1].append(name)
    return batches


def timed(
    contestants: dict[str, Run], rounds: int, cpu_time: bool
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each round, and the largest difference to our numbers in the first, relative.

    The first round of ours includes compilation.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    ours: dict[str, np.ndarray] = {}
    apart = 0.0
    for number in range(rounds + 1):
        for contestant, run in contestants.items():
            spent, began = 0.0, clock()
            for name, array in run():
                spent += clock() - began
                assert array.dtype == np.float32
                if number == 0:
                    expected = ours.setdefault(name, array)
                    apart = max(apart, np.abs(array - expected).max() / np.abs(expected).max())
                began = clock()
            seconds[contestant].append(spent + clock() - began)
        ours.clear()
    return seconds, float(apart)


def memory(folder: Path, proteins: Proteins) -> None:
    """Peak memory of the command while its output grows fourfold."""
    for times in (1, 4):
        with tempfile.TemporaryDirectory() as scratch:
            fasta, output = Path(scratch) / "x.fasta", Path(scratch) / "e.h5"
            text = "".join(f">{name}\n{sequence}\n" for name, sequence in proteins.items())
            fasta.write_text(text * times)
            command = ["embed", "--model", str(folder), "--input", str(fasta), "--output", output]
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, *map(str, command)], capture_output=True, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"memory: {times * len(proteins):,} proteins, {found['output'] / 1e6:,.0f} MB "
                f"written, peak {found['peak'] / 1e6:,.0f} MB"
            )


def of_every_family() -> Iterator[tuple[str, LoadedModel]]:
    """A small model of each family that the tests know, larger than theirs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    zoo = importlib.import_module("zoo")
    for family, specimen in zoo.ZOO.items():
        config = specimen.config
        changes = WIDER | {"initializer_range": 1.0 if family == "t5" else 0.02}
        if config.max_positions:
            changes["max_positions"] = 2048
        model = models.build(config.replace(**changes))
        vocabulary = get_vocabulary(config.vocabulary)
        yield family, LoadedModel(model, models.init_params(model, 0), vocabulary, family)


def precision(
    subjects: Iterator[tuple[str, LoadedModel]], proteins: Proteins, with_q3: bool
) -> None:
    """The table of relative errors of bf16, of residues and of the means of proteins."""
    residues = sum(map(len, proteins.values()))
    print(f"bf16 against fp32, {len(proteins)} proteins, {residues:,} residues\n")
    more = (" Q3 in fp32, percent | in bf16 |", "---|---|") if with_q3 else ("", "")
    print(f"| model | residues, median | residues, largest | means, largest |{more[0]}")
    print(f"|---|---|---|---|{more[1]}")
    for name, loaded in subjects:
        exact = dict(embed_sequences(loaded, proteins))
        short = dict(embed_sequences(for_reading(loaded, "bfloat16"), proteins))
        pairs = [(short[key], array) for key, array in exact.items()]
        each = np.concatenate([_apart(b, f) for b, f in pairs])
        means = _apart(
            *(np.stack([x.mean(axis=0) for x in side]) for side in zip(*pairs, strict=True))
        )
        scores = [f"{100 * q3(loaded, d):.2f} |" for d in ("float32", "bfloat16") if with_q3]
        row = f"| {name} | {np.median(each):.4f} | {each.max():.4f} | {means.max():.4f} |"
        print(" ".join([row, *scores]), flush=True)


def q3(loaded: LoadedModel, dtype: Literal["float32", "bfloat16"]) -> float:
    """Share of TS115's residues whose state a linear head reads from the last layer."""
    from protlm_jax.evaluation.probes.run import probe

    found = probe(
        loaded,
        "secondary_structure",
        heads=["linear"],
        views=["ts115"],
        controls=[],
        train_proteins=100,
        valid_proteins=50,
        window=1022,
        compute=dtype,
    ).result
    tests = found["heads"]["linear"]["inputs"]["model"]["tests"]
    return float(tests["ts115"]["q3"]["pooled"]["value"])


def _apart(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="esm2")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: random weights")
    parser.add_argument("--fasta", type=Path, help="default: the bundled proteins")
    parser.add_argument("--proteins", type=int, default=200, help="how many of them")
    parser.add_argument("--longest", type=int, default=2000, help="longer ones are left out")
    parser.add_argument("--residues", type=int, default=4000, help="of a batch in torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu_time", action="store_true", help="processor instead of wall time")
    parser.add_argument("--memory", action="store_true", help="measure the command's memory, too")
    parser.add_argument("--precision", action="store_true", help="bf16 against fp32 instead")
    parser.add_argument("--q3", action="store_true", help="and what it does to Q3")
    arguments = parser.parse_args()
    records = list(read_fasta(arguments.fasta or bundled.path("pretraining")))
    fitting = (r for r in records if len(r.sequence) <= arguments.longest)
    chosen = itertools.islice(fitting, arguments.proteins)
    proteins = {r.id: r.sequence for r in chosen}
    if arguments.precision:
        named = arguments.model and iter([(arguments.model.name, load_model(arguments.model))])
        precision(named or of_every_family(), proteins, arguments.q3)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model
        if folder is None:
            config = SHAPES[arguments.shape]
            model = models.build(config)
            vocabulary = get_vocabulary(config.vocabulary)
            random = LoadedModel(model, models.init_params(model, 0), vocabulary, arguments.shape)
            folder = export(random, Path(scratch) / arguments.shape)
        loaded = load_model(folder)
        run = ours(loaded, proteins)
        contestants = {
            "protlm_jax": run,
            "(a) torch, sorted, by residues": theirs(folder, loaded, proteins, arguments.residues),
            "(b) torch, one at a time": theirs(folder, loaded, proteins, None),
        }
        seconds, apart = timed(contestants, arguments.rounds, arguments.cpu_time)
        report(seconds, loaded, proteins, len(records))
        print(f"largest difference of torch's numbers from ours: {apart:.1e} of the largest")
        if not apart < 1e-4:
            sys.exit("the numbers are not the same: more than 1e-4 apart")
        if arguments.memory:
            memory(folder, proteins)


def report(
    seconds: dict[str, list[float]], loaded: LoadedModel, proteins: Proteins, read: int
) -> None:
    lengths = [len(s) for s in proteins.values()]
    first = seconds["protlm_jax"][0]
    seconds = {name: values[1:] or values for name, values in seconds.items()}
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    print(
        f"{loaded.name}: d_model {loaded.config.d_model}, {loaded.config.num_layers} layers, fp32; "
        f"{len(proteins):,} of {read:,} proteins, {sum(lengths):,} residues, {min(lengths)} to "
        f"{max(lengths)}; first pass of ours {first:.2f} s"
    )
    for name, median in medians.items():
        print(
            f"{name:31s} median {median:7.2f} s (fastest {min(seconds[name]):7.2f})  "
            f"{len(proteins) / median:7.2f} proteins/s  {sum(lengths) / median:8,.0f} residues/s  "
            f"protlm_jax is {median / medians['protlm_jax']:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
