r"""What depth does in small masked models, at equal parameters and at equal operations.

    python benchmarks/depth_study.py --output runs/depth_study \
        [--outside NAME=FOLDER] [--page docs/study]

For each arm of configs/depth_study.py: the learning rate is tuned on validation proteins with one
seed, the best rate is trained with the other seeds, and every model and what it started from are
measured on test proteins, as `protlm evaluate` and `protlm depth` do. --outside measures another
model in the same way, such as a Hugging Face folder of ESM-2. What is done already is not done
again. Results go to results.json, and with --page to a folder of the documentation with figures.
--config.train.steps=250 --config.schedule.warmup_steps=25 and the like hold for all arms.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from depth_study_baselines import neighbours
from depth_study_page import write_page
from depth_study_seeds import IDLE, compared, idle_share, listed, over_seeds

from protlm_jax.cli import main as protlm
from protlm_jax.config.files import load_config
from protlm_jax.config.run import RunConfig
from protlm_jax.data.splits import (
    heldout_records,
    is_heldout,
    load_records,
    source_name,
    training_frequencies,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import heldout, verbs
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.metrics import DEFAULT
from protlm_jax.evaluation.depth.scores import GUESS, centre, per_layer_effect, reached
from protlm_jax.huggingface import load_model
from protlm_jax.models import LoadedModel, init_params, parameter_count
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.storage.files import write_atomically
from protlm_jax.training.loop import train

PROTEINS = "proteins"
CURVES = ("skip_kl", "skip_l2", "skip_delta_nll", "lens_nll", "stream_norm")


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        config: file of the arms.
        arms: variants in it; the first is what the others are compared with.
        overrides: of every config.
        seeds: of weights, data order and masks; the first one tunes.
        rates: learning rates that are tried in any case, ascending. While the best one is an end,
            twice or half of it is tried too.
        most_rates: at most so many.
        validation_percent: of the held-out proteins, those that a split of so many percent would
            hold out choose the rate; the others are the test proteins.
        proteins: test proteins whose depth is measured.
        metrics: what is measured of them.
    """

    config: str = "configs/depth_study.py"
    arms: tuple[str, ...] = ("shallow", "deep_narrow", "deep_wide")
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3, 2e-3)
    most_rates: int = 6
    validation_percent: float = 1.0
    proteins: int = 32
    metrics: tuple[str, ...] = DEFAULT


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--outside", action="append", default=[], help="another model, NAME=FOLDER")
    parser.add_argument("--page", type=Path, help="folder for figures, tables and results.json")
    arguments, rest = parser.parse_known_args()
    overrides = tuple(word.removeprefix("--config.") for word in rest)
    if any(not word.startswith("--config.") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Seeds of an arm share their programs.
    jax.config.update("jax_compilation_cache_dir", str(arguments.output / "compiled"))
    outside = dict(text.split("=", 1) for text in arguments.outside)
    results = Bench(Study(overrides=overrides), arguments.output).run(outside)
    if arguments.page is not None:
        write_page(results, arguments.page)


class Bench:
    """A study and the folder in which it is made, stage by stage."""

    def __init__(self, study: Study, output: Path) -> None:
        self.study, self.output = study, output
        first = load_config(f"{study.config}:{study.arms[0]}", list(study.overrides))
        self.config_of_first, self.data = first.to_dict(), first.data
        records = heldout_records(self.data)
        chosen = [is_heldout(r.sequence, study.validation_percent) for r in records]
        sides = {
            wanted: {r.id: r.sequence for r, c in zip(records, chosen, strict=True) if c is wanted}
            for wanted in (True, False)
        }
        self.validation, self.test = sides[True], sides[False]
        self.frequencies = training_frequencies(self.data)
        names = random.Random(verbs.SEED).sample(
            sorted(self.test), min(study.proteins, len(self.test))
        )
        self.drawn = {name: self.test[name] for name in names}
        self.claim()

    def claim(self) -> None:
        """Refuses a folder with results of another study."""
        configs = {arm: self.config(arm, 1.0, 0).to_dict() for arm in self.study.arms}
        content = json.dumps({**dataclasses.asdict(self.study), "configs": configs}, indent=1)
        file = self.output / "study.json"
        if file.exists() and file.read_text() != content:
            raise ProtlmError(f"{file} is of another study: choose another --output, or delete it")
        write_atomically(file, content)

    def prepare(self) -> None:
        """The proteins as token files: read once for all runs, and without TensorFlow."""
        percent, source = str(self.data.heldout_percent), source_name(self.data)
        words = ("--dataset", "fasta", "--input", source, "--heldout_percent", percent, "--tokens")
        if protlm(["prepare", *words, "--workers", "1", "--output", str(self.output / PROTEINS)]):
            raise ProtlmError(f"{source} could not be prepared, see above")

    def run(self, outside: Mapping[str, str]) -> dict[str, Any]:
        """Everything; returns and writes results.json."""
        self.prepare()
        arms = {arm: self.arm(arm) for arm in self.study.arms}
        first = self.study.arms[0]
        results = {
            "study": dataclasses.asdict(self.study),
            "config": self.config_of_first,
            "proteins": {
                "validation": len(self.validation),
                "test": len(self.test),
                "depth": len(self.drawn),
            },
            "idle_below": IDLE,
            "baselines": self.kept("baselines", self.baselines),
            "arms": arms,
            "differences": {
                f"{arm} - {first}": compared(*(_numbers(arms[a]["seeds"]) for a in (arm, first)))
                for arm in self.study.arms[1:]
            },
            "outside": {name: self.outside(name, folder) for name, folder in outside.items()},
        }
        write_atomically(self.output / "results.json", json.dumps(results, indent=1) + "\n")
        return results

    def arm(self, arm: str) -> dict[str, Any]:
        """Tunes an arm, trains its seeds and measures them."""
        losses = self.tuned(arm)
        rate = min(losses, key=losses.__getitem__)
        config = self.config(arm, rate, self.study.seeds[0])
        rows, length = config.train.batch_size, config.data.length
        seeds = {}
        for seed in self.study.seeds:
            folder = self.trained(arm, rate, seed)
            measure = functools.partial(self.measured, str(folder), seed)
            seeds[str(seed)] = self.kept(f"{folder.name}-measured", measure)
        return {
            "layers": config.model.num_layers,
            "d_model": config.model.d_model,
            "parameters": parameter_count(load_model(folder).params),
            "rows": rows,
            "tokens": rows * length * config.train.steps,
            "flops_per_update": training_flops_per_token(config.model, length) * rows * length,
            "tuning": {f"{r:g}": loss for r, loss in sorted(losses.items())},
            "learning_rate": rate,
            "seeds": seeds,
            "trained": over_seeds(_numbers(seeds)),
            "control": over_seeds(_numbers(seeds, "control")),
            "trained - control": compared(*(_numbers(seeds, w) for w in ("trained", "control"))),
        }

    def tuned(self, arm: str) -> dict[float, float]:
        """Validation loss by learning rate, in nats; trained in full with the first seed."""
        losses: dict[float, float] = {}
        rates = list(self.study.rates)
        while rates:
            for rate in rates:
                folder = self.trained(arm, rate, self.study.seeds[0])
                score = functools.partial(self.validated, folder)
                found = self.kept(f"{folder.name}-validation", score)
                losses[rate] = found["model"]["nll"]["value"]
            best = min(losses, key=losses.__getitem__)
            rates = [r for end, r in ((max, 2 * best), (min, best / 2)) if end(losses) == best]
            rates = rates[: self.study.most_rates - len(losses)] if len(losses) > 1 else []
        return losses

    def config(self, arm: str, rate: float, seed: int) -> RunConfig:
        own = (f"schedule.learning_rate={rate!r}", f"train.seed={seed}", "data.fasta=None")
        own = (*own, f"data.prepared={self.output / PROTEINS}")
        return load_config(f"{self.study.config}:{arm}", [*self.study.overrides, *own])

    def trained(self, arm: str, rate: float, seed: int) -> Path:
        """The folder of a run, trained to its end."""
        folder = self.output / f"{arm}-rate{rate:g}-seed{seed}"
        say(f"training {folder.name}")
        train(self.config(arm, rate, seed), folder)
        return folder

    def validated(self, folder: Path) -> dict[str, Any]:
        return self.scored(load_model(folder), self.validation)

    def measured(self, source: str, seed: int) -> dict[str, Any]:
        """A model and a fresh one from the seed, which of a run of ours is what it started from."""
        loaded = load_model(source)
        fresh = init_params(loaded.model, seed)
        control = dataclasses.replace(loaded, params=fresh, name=f"{loaded.name}, untrained")
        scored = self.scored(loaded, self.test)
        nll = scored["model"]["nll"]["value"]
        lead = scored["baselines"]["training_frequencies"]["nll"]["value"] - nll
        found = self.described(loaded, nll, lead)
        return {"trained": {"heldout": scored, **found}, "control": self.described(control)}

    def described(
        self, loaded: LoadedModel, nll: float | None = None, lead: float | None = None
    ) -> dict[str, Any]:
        """Depth of one model: single numbers beside its test loss, and curves by layer."""
        say(f"measuring the depth of {loaded.name}")
        length = self.data.length
        found = analyse(
            *(loaded, self.drawn), metrics=self.study.metrics, length=length, seed=verbs.SEED
        )
        stack = found[loaded.model.readouts[0].stack]
        curves = {name: stack[name].values for name in CURVES}
        curves["relative_contribution"] = stack["relative_contribution"].values[0]  # of the layer
        effects = stack["skip_effect"].values
        above = np.triu(np.ones_like(effects), k=1) > 0
        curves["skip_map"] = np.where(above, effects, np.nan)
        return {
            "numbers": {
                "nll": nll,
                "lead": lead,
                "depth_score": _number(centre(per_layer_effect(effects))),
                "output_depth_score": _number(centre(curves["skip_l2"])),
                "idle_share": idle_share(curves["skip_delta_nll"], lead or 0.0),
                "exit_depth": _number(reached(GUESS - curves["lens_nll"])),
            },
            **{name: listed(values) for name, values in curves.items()},
        }

    def scored(self, loaded: LoadedModel, proteins: Mapping[str, str]) -> dict[str, Any]:
        """Held-out losses, through windows as long as a row of the training."""
        length = self.data.length
        found = heldout.evaluate(loaded, proteins, self.frequencies, verbs.SEED, length=length)
        return {key: found[key] for key in ("model", "baselines", "model_minus", "targets")}

    def baselines(self) -> dict[str, Any]:
        """What counting gives at the same residues of the test proteins, in nats."""
        records = load_records(self.data, "train")
        return neighbours((r.sequence for r in records), self.test, self.frequencies, verbs.SEED)

    def outside(self, name: str, folder: str) -> dict[str, Any]:
        loaded = load_model(folder)
        measure = functools.partial(self.measured, folder, self.study.seeds[0])
        found = self.kept(f"{name}-measured", measure)
        size = {"layers": loaded.config.num_layers, "d_model": loaded.config.d_model}
        return {**size, "parameters": parameter_count(loaded.params), **found}

    def kept(self, name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stage's result, made now or by an earlier call."""
        file = self.output / f"{name}.json"
        if not file.exists():
            say(name)
            began = time.process_time()
            result = {**stage(), "cpu_seconds": round(time.process_time() - began, 1)}
            write_atomically(file, json.dumps(result) + "\n")
        return json.loads(file.read_text())


def _numbers(seeds: Mapping[str, Any], which: str = "trained") -> list[dict[str, float | None]]:
    return [seed[which]["numbers"] for seed in seeds.values()]


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    main()
