"""Runs that start from another model: what they take, what they say, what they refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from safetensors.numpy import load_file, save_file
from zoo import ZOO, kinds_alone, loaded

from protlm_jax.cli import main
from protlm_jax.config.files import read_config
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, import_model, load_model, load_source
from protlm_jax.training import loop
from protlm_jax.training.checkpoints import restore_params, restore_part, saved_steps
from protlm_jax.training.initial import vocabulary_rows
from protlm_jax.vocabularies import PROT_BERT, PROT_T5


def config(fasta: Path, family: str, **sections: Any) -> RunConfig:
    defaults = {"data": {"fasta": str(fasta)}, "schedule": {"learning_rate": 1e-2}}
    return RunConfig.from_dict(runs.tree(family, **{**defaults, **sections}))


def run(fasta: Path, workdir: Path, family: str = "bert", **sections: Any) -> RunConfig:
    made = config(fasta, family, **sections)
    loop.train(made, workdir, load_source)
    return made


@pytest.fixture(scope="module")
def sources(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of four steps of a family, made once."""
    made: dict[str, Path] = {}

    def source(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("source") / family
            run(fasta, made[family], family)
        return made[family]

    return source


def heldout(workdir: Path, step: int) -> float:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("heldout/nll", "heldout/detection/nll")
    values = [line[n] for line in lines if line["step"] == step for n in names if n in line]
    return float(values[0])


def started(fasta: Path, workdir: Path, family: str, **sections: Any) -> Any:
    """The state of a run before its first update."""
    claimed = config(fasta, family, **sections)
    loop.claim_workdir(claimed, workdir)
    with contextlib.closing(loop.Run(claimed, workdir, load_source)) as made:
        return made.state


def by_name(chain: Any) -> dict[str, Any]:
    """Arrays of an optimizer's chain, whatever the number of the link that they belong to."""
    flat = jax.tree_util.tree_flatten_with_path(chain)[0]
    return {jax.tree_util.keystr(p[1:], simple=True, separator="/"): leaf for p, leaf in flat}


def report(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "init.json").read_text())


@pytest.mark.parametrize("family", ["bert", "transformer_xl"])
def test_the_first_loss_is_the_last_of_the_run_it_starts_from(
    fasta: Path, tmp_path: Path, sources: Any, family: str
) -> None:
    source = sources(family)
    made = run(fasta, tmp_path / "on", family, init_from=str(source), train={"seed": 5})
    assert heldout(tmp_path / "on", 0) == heldout(source, 4) != heldout(tmp_path / "on", 4)
    assert read_config(tmp_path / "on") == made and made.init_from == str(source)
    said = report(tmp_path / "on")
    assert said["new"] == said["left"] == [] and "adamw starts anew" in said["optimizer"]


@pytest.mark.parametrize("family", kinds_alone())
def test_a_folder_of_every_family_is_taken_bit_for_bit(
    fasta: Path, tmp_path: Path, family: str
) -> None:
    source = loaded(family)
    export(source, tmp_path / "hf")
    taken = started(fasta, tmp_path / "on", family, init_from=str(tmp_path / "hf"))
    jax.tree.map(np.testing.assert_array_equal, taken.params, source.params)
    assert report(tmp_path / "on")["new"] == []


def test_a_head_that_was_not_stored_is_new(fasta: Path, tmp_path: Path) -> None:
    source, file = loaded("bert"), tmp_path / "hf/model.safetensors"
    export(source, tmp_path / "hf")
    body = {name: x for name, x in load_file(file).items() if not name.startswith("cls.")}
    save_file(body, file)
    taken = started(fasta, tmp_path / "on", "bert", init_from=str(tmp_path / "hf"))
    jax.tree.map(np.testing.assert_array_equal, taken.params["encoder"], source.params["encoder"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(taken.params["head"]))
    assert report(tmp_path / "on")["new"] == ["the masked-language head (cls.predictions), head"]


def test_a_run_and_its_checkpoints_are_taken_bit_for_bit(
    fasta: Path, tmp_path: Path, sources: Any
) -> None:
    source = sources("bert")
    export(load_model(source), tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "imported")
    params = {step: restore_params(source / f"checkpoints/{step}") for step in (2, 4)}
    places = {source: 4, source / "checkpoints/2": 2, tmp_path / "imported": 4}
    for number, (place, step) in enumerate(places.items()):
        taken = started(fasta, tmp_path / f"on{number}", "bert", init_from=str(place))
        jax.tree.map(np.testing.assert_array_equal, taken.params, params[step])
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, params[2], params[4])


def test_the_optimizer_comes_along_when_asked(fasta: Path, tmp_path: Path) -> None:
    """Its moments and their count; where the schedule begins is the new run's own matter."""
    settings = {"optimizer": {"name": "adafactor", "weight_decay": 0.0}}
    run(fasta, tmp_path / "first", **settings)
    kept = {**settings, "init_from": str(tmp_path / "first"), "init_what": "state"}
    # Clipping adds a link to the chain; the moments keep their meaning.
    kept["optimizer"] = {**settings["optimizer"], "clip_norm": 1.0}
    state = started(fasta, tmp_path / "kept", "bert", **kept)
    there = by_name(restore_part(tmp_path / "first/checkpoints/4", "opt_state")[:-1])
    here = by_name(state.opt_state[:-1])
    assert here.keys() == there.keys() and len(here) > 10
    for name, moment in here.items():
        np.testing.assert_array_equal(moment, there[name], name)
    assert int(state.step) == 0 and int(state.opt_state[-1].count) == 0
    assert "after 4 updates are kept" in report(tmp_path / "kept")["optimizer"]
    fresh = started(fasta, tmp_path / "reset", init_from=str(tmp_path / "first"), family="bert")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh.opt_state))


def test_a_longer_position_table_keeps_its_beginning(
    fasta: Path, tmp_path: Path, sources: Any
) -> None:
    source = sources("bert")
    longer = {"model": {"max_positions": 80}, "init_from": str(source), "init_what": "state"}
    state = started(fasta, tmp_path / "long", "bert", **longer)
    before = restore_params(source / "checkpoints/4")["embedder"]["position"]
    after = np.asarray(state.params["embedder"]["position"])
    np.testing.assert_array_equal(after[:64], before)
    scale = ZOO["bert"].config.initializer_range
    assert after.shape[0] == 80 and 0.5 * scale < after[64:].std() < 1.5 * scale
    moments = np.asarray(state.opt_state[0].mu["embedder"]["position"])
    assert np.any(moments[:64]) and not np.any(moments[64:])
    assert report(tmp_path / "long")["new"] == ["positions 64 to 79 of the position table"]
    shorter = {"model": {"max_positions": 40}, "init_from": str(source)}
    state = started(fasta, tmp_path / "short", "bert", **shorter)
    np.testing.assert_array_equal(state.params["embedder"]["position"], before[:40])
    assert report(tmp_path / "short")["left"] == ["positions 40 to 63 of the position table"]


def test_rows_of_another_vocabulary_are_found_by_their_tokens(
    fasta: Path, tmp_path: Path, sources: Any
) -> None:
    source = sources("bert")
    other = {"vocabulary": "prot_albert", "vocab_size": 32}
    state = started(fasta, tmp_path, "bert", model=other, init_from=str(source))
    before = restore_params(source / "checkpoints/4")
    albert = loop.get_vocabulary("prot_albert")
    for path in (("embedder", "token"), ("head", "bias")):
        old, new = before[path[0]][path[1]], np.asarray(state.params[path[0]][path[1]])
        np.testing.assert_array_equal(new[albert.amino_acid_ids], old[PROT_BERT.amino_acid_ids])
        np.testing.assert_array_equal(new[albert.mask_id], old[PROT_BERT.mask_id])
        np.testing.assert_array_equal(new[albert.pad_id], old[PROT_BERT.pad_id])
    assert report(tmp_path)["new"] == ["2 rows of the vocabulary: row 30, row 31"]
    assert report(tmp_path)["left"] == []


def test_vocabulary_rows() -> None:
    grown = vocabulary_rows(PROT_BERT, PROT_BERT, 30, 32)
    assert grown.tolist() == [*range(30), -1, -1]
    rows = vocabulary_rows(PROT_BERT, PROT_T5, 30, 128)
    np.testing.assert_array_equal(rows[PROT_T5.amino_acid_ids], PROT_BERT.amino_acid_ids)
    assert rows[PROT_T5.mask_id] == PROT_BERT.mask_id and rows[PROT_T5.pad_id] == PROT_BERT.pad_id
    assert rows[1] == -1 and np.sum(rows >= 0) == 28  # </s> and 99 sentinels are new


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"d_ff": 48, "num_layers": 3}}, "model.num_layers: 2 there, 3 here; model.d_ff"),
        ({"init_from": "nowhere"}, "nowhere is not a folder on this machine"),
        ({"init_what": "state", "optimizer": {"name": "lamb"}}, "was trained with adamw, whose"),
    ],
)
def test_what_cannot_be_reconciled_is_refused(
    fasta: Path, tmp_path: Path, sources: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProtlmError) as caught:
        run(fasta, tmp_path, **{"init_from": str(sources("bert")), **changes})
    assert message in str(caught.value)
    assert not saved_steps(tmp_path / "checkpoints")


def test_a_folder_has_no_optimizer_to_give(fasta: Path, tmp_path: Path, sources: Any) -> None:
    export(load_model(sources("bert")), tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "imported")
    for place in ("hf", "imported"):
        with pytest.raises(ProtlmError, match="holds parameters and no optimizer's state"):
            run(fasta, tmp_path / "on", init_from=str(tmp_path / place), init_what="state")


def test_a_run_that_goes_on_never_reads_its_source_again(
    fasta: Path, tmp_path: Path, sources: Any
) -> None:
    source = tmp_path / "source"
    sources("bert").rename(source)
    try:
        made = run(fasta, tmp_path / "on", init_from=str(source))
    finally:
        source.rename(sources("bert"))
    longer = dataclasses.replace(made, train=dataclasses.replace(made.train, steps=6))
    assert loop.train(longer, tmp_path / "on") == 2
    other = dataclasses.replace(longer, init_from="elsewhere")
    with pytest.raises(ProtlmError, match="init_from: saved .*, asked 'elsewhere'"):
        loop.train(other, tmp_path / "on")


def test_adapt_takes_all_from_the_model(fasta: Path, tmp_path: Path, sources: Any, capsys) -> None:
    """The command itself, on a folder with a vocabulary of its own, and again after a stop."""
    folder = tmp_path / "hf"
    export(load_model(sources("bert")), folder)
    command = ["train", "--config", "configs/adapt.py", "--workdir", str(tmp_path / "on")]
    assert main(command) == 1
    needs = "configs/adapt.py needs --config."
    assert f"{needs}data.fasta=...: a FASTA file of" in capsys.readouterr().err
    command += [f"--config.data.fasta={fasta}", "--config.schedule.warmup_steps=1"]
    assert main(command) == 1
    assert f"{needs}init_from=...: a run, one of its checkpoints" in capsys.readouterr().err
    command += [f"--config.init_from={folder}", "--config.mesh.data=1", "--config.data.length=32"]
    assert main([*command, "--config.train.steps=2", "--config.train.batch_size=4"]) == 0
    assert "loaded: " in capsys.readouterr().err
    model = read_config(tmp_path / "on").model
    assert model == ZOO["bert"].config.replace(vocabulary=model.vocabulary)
    folder.rename(tmp_path / "gone")
    assert main([*command, "--config.train.steps=4", "--config.train.batch_size=4"]) == 0
    assert saved_steps(tmp_path / "on/checkpoints")[-1] == 4
