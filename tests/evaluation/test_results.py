"""Datasets on disk: what is read is what was saved, or one error that names the file."""

import os

import numpy as np
import pytest
import xarray

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.results import read, save
from protlm_jax.storage.digests import Damaged


@pytest.fixture
def dataset() -> xarray.Dataset:
    values = np.random.default_rng(0).normal(size=(3, 2))
    values[1, 1] = np.nan
    return xarray.Dataset(
        {
            "loss": (("protein", "layer"), values, {"units": "nats", "source": "arXiv 2505.13898"}),
            "count": ("protein", np.arange(3)),
        },
        coords={"protein": ["sp|P1|ABC", "B", "protéine"], "layer": [0, 1]},
        attrs={"model": "mine"},
    )


def test_what_is_read_is_what_was_saved(dataset: xarray.Dataset, tmp_path) -> None:
    file = save(dataset, tmp_path / "new" / "results.nc")
    xarray.testing.assert_identical(read(file), dataset)
    assert [each.name for each in file.parent.iterdir()] == ["results.nc"]
    with xarray.open_dataset(file, engine="scipy") as plain:  # by any reader of netCDF
        assert plain["loss"].attrs["units"] == "nats"


def test_equal_datasets_are_equal_files(dataset: xarray.Dataset, tmp_path) -> None:
    first, second = (save(dataset.copy(deep=True), tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_every_changed_byte_is_seen(dataset: xarray.Dataset, tmp_path) -> None:
    file = save(dataset, tmp_path / "results.nc")
    content = file.read_bytes()
    for index in range(len(content)):
        file.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(ProtlmError, match="results.nc"):
            read(file)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_cut_file_is_refused(dataset: xarray.Dataset, tmp_path, keep: int) -> None:
    file = save(dataset, tmp_path / "results.nc")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises((ProtlmError, Damaged), match="results.nc"):
        read(file)


def test_other_files_are_refused_in_one_line(dataset: xarray.Dataset, tmp_path) -> None:
    dataset.to_netcdf(tmp_path / "other.nc", engine="scipy")
    (tmp_path / "text.nc").write_text("a,b\n1,2\n")
    os.mkfifo(tmp_path / "pipe.nc")
    for name in ("other.nc", "text.nc", "pipe.nc", "missing.nc", "\0.nc", "."):
        with pytest.raises(ProtlmError) as refused:
            read(tmp_path / name)
        assert "\n" not in str(refused.value)


def test_a_forged_digest_does_not_make_the_reader_fail_otherwise(
    dataset: xarray.Dataset, tmp_path
) -> None:
    """A header that lies under a right digest: an error, and no crash."""
    from protlm_jax.evaluation import results

    file = save(dataset, tmp_path / "results.nc")
    content = bytearray(file.read_bytes())
    start, stop = results._place(content)  # type: ignore[misc]
    content[start:stop] = results._BLANK.encode()
    generator = np.random.default_rng(1)
    for _ in range(40):
        forged = bytearray(content)
        for place in generator.integers(8, 400, 3):
            forged[place] = generator.integers(256)
        if results._place(forged) != (start, stop):
            continue
        forged[start:stop] = results.digest_of_data(forged, "blake2b").encode()
        file.write_bytes(forged)
        try:
            read(file)
        except ProtlmError as error:
            assert "results.nc" in str(error)
