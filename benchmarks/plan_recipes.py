"""Every recipe's train step, compiled for the pod of its paper: does it fit, and how fast is it?

    python benchmarks/plan_recipes.py [--folder runs/plans] [NAME ...] > tables.md

NAME is a recipe or recipe/phase; all by default, a minute or more each. Plans are kept as JSON in
the folder: what is there already is not compiled again, so that the tables can be made bit by bit.
docs/pods.md holds them: what a core holds and says, and how long a step takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from protlm_jax.planning.compile import plan_recipe
from protlm_jax.planning.topologies import topology
from protlm_jax.storage.files import write_atomically

V3_512, V3_1024 = "v3:16x16", "v3:16x32"
# Recipe and phase, and its pod; after @ another pod of the same. The second phases of ProtT5 ran on
# smaller ones in the paper; those of Transformer-XL and ESM-2 on GPUs, for which a v3-1024 and a
# v3-512 stand here. The first phases of the recipes prot_t5_*_uniref50 are prot_t5_*_bfd.
PODS = {
    "esm2_uniref50": V3_512,
    "prot_albert/length512": V3_512,
    "prot_albert/length2048": V3_512,
    "prot_bert_uniref100/length512": V3_512,
    "prot_bert_uniref100/length2048": V3_512,
    "prot_bert_bfd/length512": V3_1024,
    "prot_bert_bfd/length2048": V3_1024,
    "prot_electra_bfd/length512": V3_512,
    "prot_electra_bfd/length1024": V3_512,
    "prot_t5_xl_bfd": V3_1024,
    "prot_t5_xl_uniref50/uniref50": V3_1024,
    "prot_t5_xxl_bfd": V3_1024,
    "prot_t5_xxl_bfd@v3-512": V3_512,
    "prot_t5_xxl_uniref50/uniref50": V3_1024,
    "prot_txl_bfd": V3_1024,
    "prot_txl_uniref100": V3_1024,
    "prot_xlnet": V3_512,
}
KINDS = ("all-gather", "all-reduce", "reduce-scatter")
HEADER = (
    "recipe, phase", "pod", "mesh data x fsdp x tensor", "rows x tokens", "rows of a part",
    "state", "peak", "fits", *KINDS, "others", "PFLOPs", "compiled",
)  # fmt: skip
SPEED = (
    "recipe, phase", "executed PFLOPs", "HBM", "alone: compute, HBM, ICI", "MFU at most", "a step",
    "bound by", "MFU", "HFU", "tokens per second", "from each host", "days",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path("runs/plans"))
    arguments = parser.parse_args()
    chosen = [n for n in PODS if not arguments.names or {n, n.split("/")[0]} & {*arguments.names}]
    plans = {}
    for name in chosen:
        file = arguments.folder / f"{name.replace('/', '-')}.json"
        if not file.exists():
            print(f"compiling {name} for {PODS[name]}", file=sys.stderr, flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(planned(name), indent=1) + "\n")
        plans[name] = json.loads(file.read_text())
    print(markdown(HEADER, [memory(name, plan) for name, plan in plans.items()]))
    print(markdown(SPEED, [speed(name, plan) for name, plan in plans.items()]))


def markdown(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def planned(name: str) -> dict[str, Any]:
    """The plan of a recipe's phase."""
    recipe, _, phase = name.partition("@")[0].partition("/")
    (plan,) = plan_recipe(f"configs/{recipe}.py", [], topology(PODS[name]), phase or None)
    return plan.to_dict()


def memory(name: str, plan: dict[str, Any]) -> list[str]:
    """A line of the first table; bytes in GiB, of one core."""

    def said(kind: str) -> str:
        found = plan["collectives"].get(kind)
        return f"{found['count']}, {found['bytes'] / 2**30:.2f}" if found else "-"

    others = [k for k in plan["collectives"] if k not in KINDS]
    return [
        name,
        plan["topology"],
        " x ".join(map(str, plan["mesh"].values())),
        f"{plan['rows']:,} x {plan['length']:,}",
        f"{plan['rows'] // plan['accumulate']:,}",
        f"{plan['state_bytes'] / 2**30:.2f}",
        f"{plan['peak_bytes'] / 2**30:.2f}",
        "yes" if plan["fits"] else f"no: {plan['suggestion']}",
        *map(said, KINDS),
        "; ".join(f"{kind} {said(kind)}" for kind in others) or "-",
        f"{plan['model_flops'] / 1e15:,.0f}",
        f"{plan['compile_seconds']:.0f} s",
    ]


def speed(name: str, plan: dict[str, Any]) -> list[str]:
    """A line of the second table; FLOPs of all cores, bytes in GiB of one."""
    if plan.get("step_seconds") is None:
        return [name, *["not known"] * (len(SPEED) - 1)]
    alone, step = plan["seconds"], plan["step_seconds"]
    shares = sorted(plan["spent"].items(), key=lambda item: -item[1])
    return [
        name,
        f"{plan['executed_flops'] / 1e15:,.3g}",
        f"{plan['hbm_bytes'] / 2**30:,.0f}",
        ", ".join(f"{alone[resource]:.2f}" for resource in ("compute", "hbm", "ici")) + " s",
        f"{plan['roofline_mfu']:.0%}",
        f"{step:.2f} s",
        ", ".join(f"{what} {took / step:.0%}" for what, took in shares if took >= step / 200),
        f"{plan['mfu']:.0%}",
        f"{plan['hfu']:.0%}",
        f"{plan['tokens_per_second']:,.0f}",
        f"{plan['host_tokens_per_second']:,.0f}",
        f"{plan['days']:,.0f}",
    ]


if __name__ == "__main__":
    main()
