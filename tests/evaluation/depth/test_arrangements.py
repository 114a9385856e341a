"""The same numbers however proteins and devices are arranged, and whatever kind of block runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray
import zoo
from depth_rows import asked, measure_batch

from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.stream import differences
from protlm_jax.evaluation.depth.subject import observe
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.models.stack import LayerProgram

METRICS = ("contributions", "skips")


def measured(family: str, batch: Any) -> dict[str, Any]:
    return measure_batch(zoo.loaded(family), batch, "encoder", METRICS)[0]


def test_a_packed_protein_counts_as_if_it_were_alone() -> None:
    """ESM-2 scales its tokens by each protein's own share of <mask>."""
    packed, alone = (
        measured("esm2", asked("esm2", rows)) for rows in ([[0, 1, 2]], [[0], [1], [2]])
    )
    for name, stat in alone.items():
        assert np.array_equal(stat.count[..., :3], packed[name].count[..., :3]), name
        np.testing.assert_allclose(
            packed[name].total[..., :3], stat.total[..., :3], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_rows_and_parameters_over_several_devices_are_measured_as_on_one() -> None:
    batch = asked("bert", [[0], [1], [2], [0, 1], [1], [2], [0], [2]])
    batch = batch._replace(protein=np.where(batch.protein >= 0, batch.protein % 8, -1))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def over(*axes: str | None) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    def split(leaf: Any) -> jax.Array:
        axis = None if leaf.shape[-1] % 2 else "model"
        return jax.device_put(leaf, over(*[None] * (leaf.ndim - 1), axis))

    spread = batch._replace(
        features=jax.device_put(batch.features, over("data")),
        true=jax.device_put(batch.true, over("data")),
    )
    model = zoo.loaded("bert")
    parted = dataclasses.replace(model, params=jax.tree.map(split, model.params))
    one = measured("bert", batch)
    many = measure_batch(parted, spread, "encoder", METRICS)[0]
    for name, stat in one.items():
        np.testing.assert_allclose(many[name].total, stat.total, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_folder_and_its_export_give_the_same_numbers(tmp_path: Path) -> None:
    exported = export(zoo.loaded("esm2"), tmp_path / "hf")
    sources = (exported, import_model(exported, tmp_path / "run"))
    found = [
        analyse(load_model(source), {"P": "MKTAYIAKQRQISFVKSHFSRQ"}, metrics=METRICS)
        for source in sources
    ]
    xarray.testing.assert_equal(found[0]["encoder"], found[1]["encoder"])


def test_a_silenced_sublayer_of_a_parallel_block_is_a_gate_of_zero() -> None:
    """ProGen2's MLP never sees what attention adds; the whole model is run under the program."""
    family = "progen2"
    model, batch = zoo.loaded(family), asked(family, [[1], [2]])
    found = measure_batch(model, batch, "encoder", ("sublayer_skips", "local_effects"))[0]
    positions = batch.positions("asked", model.model.readouts[0])
    arguments = (
        *(model.model, model.params, batch.features, jnp.asarray(batch.true), positions),
        *(jnp.asarray(model.vocabulary.amino_acid_ids), "encoder"),
    )

    @jax.jit
    def under(program: LayerProgram) -> Any:
        subject = observe(*arguments)
        final = subject.execute(subject.streams[0], program)
        return differences(subject, subject.answer(subject.streams[-1]), subject.answer(final))

    for sublayer in range(2):
        for layer in range(2):
            expected = under(LayerProgram.full(2).ablate(layer, sublayer))
            for name, stat in expected.items():
                total = found[f"sublayer_skip_{name}"].total[sublayer, layer]
                np.testing.assert_allclose(total, stat.total, rtol=1e-4, atol=1e-5, err_msg=name)
    assert found["local_effect"].total[0, 1].sum() > 0
