"""A saved fit: the same fit again, whole or not at all, and refused in one sentence otherwise."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sd import __version__
from bayes_sd.errors import InputError
from bayes_sd.fit import Fit
from bayes_sd.model.file import FORMAT, GROUPS, SEAL_BYTES, _seal
from bayes_sd.runs.schema import Runs


def test_what_is_loaded_is_what_was_saved(fit: Fit, tmp_path: Path) -> None:
    """Over an older file, and readable by whom the umask allows."""
    target = tmp_path / "fit.nc"
    target.write_bytes(b"older")
    umask = os.umask(0o022)
    try:
        assert fit.save(str(target)) == target
    finally:
        os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]
    again = Fit.load(target)
    assert set(again.tree.children) == {*GROUPS, "sample_stats"}
    for name, node in fit.tree.children.items():
        xr.testing.assert_identical(
            again.tree[name].to_dataset().drop_attrs(), node.to_dataset().drop_attrs()
        )
    for name in ("runs", "censored_runs", "verifiers", "drafters", "servers"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(fit, name), check_dtype=False)
    for name in ("spec", "provenance", "sampling", "law", "environments", "shape"):
        assert getattr(again, name) == getattr(fit, name), name
    assert repr(again) == repr(fit)


def test_a_fit_says_where_it_comes_from(fit: Fit, runs: Runs) -> None:
    steady, said = runs.steady.table, fit.provenance
    assert said["runs"] == len(steady) == len(fit.runs)
    assert said["runs_censored"] == len(fit.censored_runs) == len(runs) - len(steady) > 0
    assert said["requests"] == steady["requests"].sum() and said["runs_read"] == len(runs)
    assert said["environment"] == steady["environment"].iloc[0]
    assert said["versions"]["bayes_sd"] == __version__
    assert fit.spec["seed"] == 1
    assert {"read_weights", "scatter_server", "run_sd"} <= {p["name"] for p in fit.spec["priors"]}
    assert f"{len(steady)} runs ({steady['requests'].sum()} requests)" in repr(fit)


def test_thinning_keeps_every_nth_draw_and_all_else(fit: Fit) -> None:
    thin = fit.thin(100)
    assert isinstance(thin, Fit) and thin.shape == (4, 30) and fit.shape == (4, 120)
    every = fit.posterior["law"].isel(draw=slice(None, None, 4))
    np.testing.assert_array_equal(thin.posterior["law"], every)
    assert thin.tree["acceptance"].sizes["draw"] == 30
    assert thin.runs.equals(fit.runs) and thin.spec == fit.spec
    assert fit.thin(10_000).shape == fit.shape


@pytest.mark.parametrize("broken", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_failed_save_leaves_all_as_it_was(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, broken: BaseException
) -> None:
    whole = Path.write_bytes

    def write(self: Path, content: bytes) -> None:
        whole(self, content[:9])
        raise broken

    def replace(*_: object) -> None:
        raise broken

    target = tmp_path / "fit.nc"
    target.write_bytes(b"older")
    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr("bayes_sd.model.file.os.replace", replace)
    with pytest.raises(type(broken)):
        fit.save(target)
    assert target.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]


def test_what_cannot_be_written_is_refused(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder .*nowhere does not exist"):
        fit.save(tmp_path / "nowhere" / "fit.nc")
    with pytest.raises(InputError, match="is a folder"):
        fit.save(tmp_path)


def refused(path: Path) -> str:
    """The one sentence, which names the file."""
    with pytest.raises(InputError) as caught:
        Fit.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def sealed(fit_path: Path, path: Path, change: Callable[[h5py.File], object]) -> Path:
    """The committed fit, changed, as a version that saves it so would have sealed it."""
    path.write_bytes(fit_path.read_bytes()[:-SEAL_BYTES])
    with h5py.File(path, "r+") as file:
        change(file)
    content = path.read_bytes()
    path.write_bytes(content + _seal(content))
    return path


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "fit.nc")
    assert "no such file" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not netCDF at all", b"CDF\x01\x00\x00", b"{}"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fit.nc"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(fit_path: Path, tmp_path: Path, share: float) -> None:
    whole = fit_path.read_bytes()
    path = tmp_path / "fit.nc"
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path)


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_another_format_is_refused_with_both_named(
    fit_path: Path, tmp_path: Path, version: int
) -> None:
    path = tmp_path / "fit.nc"
    message = refused(sealed(fit_path, path, lambda file: file.attrs.modify("format", version)))
    assert f"format {version}; this version reads {FORMAT}: fit the runs again" in message


def test_a_file_that_names_no_format_is_refused(fit_path: Path, tmp_path: Path) -> None:
    path = sealed(fit_path, tmp_path / "fit.nc", lambda file: file.attrs.pop("format"))
    assert "was saved in an unknown format" in refused(path)


def test_a_number_changed_by_another_program_is_refused(fit_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "fit.nc"
    shutil.copy(fit_path, path)
    with h5py.File(path, "r+") as file:
        file["posterior/law"][0, 0, 0] *= 1.001
    assert "was changed or damaged after it was saved" in refused(path)


def test_a_damaged_file_is_refused_in_one_sentence(fit_path: Path, tmp_path: Path) -> None:
    """Bytes changed, zeroed, left out or put in anywhere: none answers other numbers."""
    whole, rng, path = fit_path.read_bytes(), np.random.default_rng(0), tmp_path / "fit.nc"
    for i in range(100):
        at, length = int(rng.integers(len(whole) - 1)), int(rng.integers(1, 64))
        put = (rng.bytes(length), bytes(length), b"", whole[at : at + length] + b"x")[i % 4]
        damaged = whole[:at] + put + whole[at + length :]
        if damaged != whole:
            path.write_bytes(damaged)
            refused(path)


def test_netcdf_of_something_else_or_of_half_a_fit_is_refused(
    fit_path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.nc"
    xr.Dataset({"x": ("t", np.arange(3))}).to_netcdf(other, engine="h5netcdf")
    half = sealed(fit_path, tmp_path / "half.nc", lambda file: file.pop("acceptance"))
    assert "not a fit" in refused(other) and "not a fit" in refused(half)
