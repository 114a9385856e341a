"""Pseudo-likelihoods per second, against transformers + torch with the same weights and proteins.

    python benchmarks/score.py [--shape small|tiny|mid|prot_bert] [--longest 100]
                               [--proteins 8] [--rounds 5]

Two ways in torch: one masked position a forward, as most scripts have it, and all masked copies of
a protein in batches of 32. Tokens are made beforehand and gradients are off. Rounds are
interleaved, because the machine's speed drifts; ratios are between medians. All three give the same
numbers.

What batches save is the cost of a forward that is not arithmetic. On a CPU that is most of a small
model and of a short protein, and little of a large one; on an accelerator it is nearly all.

On a machine that others use, compare processor time on one core:

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/score.py --cpu_time
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from protlm_jax import bundled, models
from protlm_jax.data.fasta import read_fasta
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.huggingface import export
from protlm_jax.models import LoadedModel
from protlm_jax.models.families.bert import bert_config
from protlm_jax.vocabularies import PROT_BERT

SHAPES = {  # d_model, layers, heads
    "small": (64, 2, 2),
    "tiny": (96, 4, 2),  # as configs/tiny.py:bert
    "mid": (256, 6, 4),
    "prot_bert": (1024, 30, 16),
}


def ours(loaded: LoadedModel, proteins: Sequence[str]) -> Callable[[], list[float]]:
    return lambda: [score.total for score in likelihoods(loaded, proteins, softmax="vocabulary")]


def theirs(folder: Path, proteins: Sequence[str], rows: int) -> Callable[[], list[float]]:
    """transformers' BertForMaskedLM on masked copies, `rows` at a time."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval().to(device)
    tokens = [torch.tensor(PROT_BERT.encode(p), device=device)[None].long() for p in proteins]

    def score(ids: torch.Tensor) -> float:
        total = 0.0
        for positions in torch.arange(1, ids.shape[1] - 1, device=device).split(rows):
            shown, row = ids.repeat(len(positions), 1), torch.arange(len(positions), device=device)
            shown[row, positions] = PROT_BERT.hiding_id
            logits = model(input_ids=shown).logits[row, positions]
            found = logits.log_softmax(dim=-1)[row, ids[0, positions]]
            total += found.sum().item()
        return total

    def run() -> list[float]:
        with torch.inference_mode():
            return [score(ids) for ids in tokens]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--longest", type=int, default=100, help="residues of the longest protein")
    parser.add_argument("--proteins", type=int, default=8, help="how many of the bundled ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu_time", action="store_true", help="processor instead of wall time")
    arguments = parser.parse_args()
    d_model, layers, heads = SHAPES[arguments.shape]
    config = bert_config(
        d_model=d_model,
        num_layers=layers,
        num_heads=heads,
        head_dim=d_model // heads,
        d_ff=4 * d_model,
        max_positions=514,
    )
    model = models.build(config)
    loaded = LoadedModel(model, models.init_params(model, 0), PROT_BERT, "benchmark")
    records = read_fasta(bundled.path("pretraining"))
    fitting = (r.sequence for r in records if len(r.sequence) <= arguments.longest)
    proteins = list(itertools.islice(fitting, arguments.proteins))
    with tempfile.TemporaryDirectory() as folder:
        exported = export(loaded, Path(folder) / "hf")
        contestants = {
            "protlm_jax": ours(loaded, proteins),
            "torch, one position at a time": theirs(exported, proteins, 1),
            "torch, batches of 32": theirs(exported, proteins, 32),
        }
    first = {name: run() for name, run in contestants.items()}  # compilation and warm-up
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, run in contestants.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    residues = sum(map(len, proteins))
    print(
        f"{arguments.shape}: d_model {d_model}, {layers} layers, {heads} heads, fp32; "
        f"{len(proteins)} proteins of {min(map(len, proteins))} to {max(map(len, proteins))} "
        f"residues"
    )
    for name, median in medians.items():
        ratio = median / medians["protlm_jax"]
        print(
            f"{name:30s} median {median:7.2f} s (fastest {min(seconds[name]):7.2f})  "
            f"{len(proteins) / median:7.2f} proteins/s  {residues / median:8,.0f} residues/s  "
            f"protlm_jax is {ratio:.2f} times as fast"
        )
    ours_first = np.asarray(first["protlm_jax"])
    apart = max(np.abs(np.asarray(t) / ours_first - 1).max() for t in first.values())
    print(f"largest difference of torch's totals from ours: {apart:.1e}")
    if not apart < 1e-5:
        sys.exit("the numbers are not the same: more than 1e-5 apart")


if __name__ == "__main__":
    main()
