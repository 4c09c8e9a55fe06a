"""A fit's tree and its file: what was drawn, from which runs, under which specification."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.physics.costs import Law

FORMAT = 3  # of the file; raised when a reader must know
GROUPS = ("posterior", "acceptance", "runs", "verifiers", "drafters")


def writable(path: Path) -> None:
    """Refuse a file that cannot be written, before hours are spent on what goes into it.

    Raises
    ------
    InputError
        If the folder does not exist, or `path` is one.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the file to write.")


@dataclass(frozen=True, eq=False, repr=False)
class Stored:
    """What a fit holds and how it is kept; its answers are :class:`bayes_sd.Fit`'s.

    Parameters
    ----------
    tree : xarray.DataTree
        See :class:`bayes_sd.Fit`.
    """

    tree: xr.DataTree

    @property
    def posterior(self) -> xr.Dataset:
        """Draws in natural units, dims (chain, draw, ...)."""
        return self.tree["posterior"].to_dataset()

    @cached_property
    def unlabelled(self) -> xr.Dataset:
        """The posterior without labels of chain and draw.

        All draws of a fit have the same, and comparing them took two thirds of an answer.
        """
        return self.posterior.drop_vars(("chain", "draw"), errors="ignore")

    @property
    def runs(self) -> pd.DataFrame:
        """The fitted steady runs: ``system``, ``pair``, fitted latency (s), utilization."""
        return self._runs[~self._runs["saturated"]].reset_index(drop=True)

    @property
    def censored_runs(self) -> pd.DataFrame:
        """The runs past saturation that bounded the latency from below; columns as `runs`."""
        return self._runs[self._runs["saturated"]].reset_index(drop=True)

    @cached_property
    def _runs(self) -> pd.DataFrame:
        runs = self.tree["runs"].to_dataset().to_dataframe().reset_index(drop=True)
        return runs.astype({"saturated": bool})

    @cached_property
    def law(self) -> Law:
        """The law that was fitted."""
        law = self.spec["law"]
        return Law(tuple(law["parts"]), law["tile_tokens"])

    @property
    def spec(self) -> dict[str, Any]:
        """Priors and sampler settings."""
        return dict(json.loads(self.tree.attrs["spec"]))

    @property
    def provenance(self) -> dict[str, Any]:
        """When, from what data, with which versions."""
        return dict(json.loads(self.tree.attrs["provenance"]))

    @property
    def sampling(self) -> dict[str, Any]:
        """Convergence summary and seconds spent."""
        return dict(json.loads(self.tree.attrs["sampling"]))

    def __repr__(self) -> str:
        s, p = self.sampling, self.provenance
        return (
            f"Fit of {p['runs']} runs ({p['requests']} requests) on {p['environment']}: "
            f"{self.tree['verifiers'].sizes['verifier']} verifiers, "
            f"{self.tree['posterior'].sizes['system']} systems\n"
            f"R-hat <= {s['rhat_max']:.3f}, ESS >= {s['ess_bulk_min']:.0f} bulk and "
            f"{s['ess_tail_min']:.0f} tail, {s['divergences']} divergences, "
            f"{s['chains']} x {s['draws']} draws"
        )

    def thin(self, draws: int) -> Self:
        """The same fit with every n-th draw, at least `draws` of them if there are so many."""
        sizes = self.tree["posterior"].sizes
        step = max(1, sizes["chain"] * sizes["draw"] // draws)
        parts = {
            name: node.to_dataset().isel(draw=slice(None, None, step))
            if "draw" in node.sizes
            else node.to_dataset()
            for name, node in self.tree.children.items()
        }
        result = xr.DataTree.from_dict(parts)
        result.attrs = self.tree.attrs
        return type(self)(result)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fit to one netCDF file, whole or not at all.

        Parameters
        ----------
        path : path
            Overwritten if it exists.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        InputError
            If the folder does not exist, or `path` is one.
        """
        path = Path(path)
        writable(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.tree.to_netcdf(draft, engine="h5netcdf")
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a saved fit; needs no PyMC.

        Parameters
        ----------
        path : path

        Returns
        -------
        Fit

        Raises
        ------
        InputError
            If the file is missing, is not a fit, or has a newer format.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file.")
        try:
            with xr.open_datatree(path, engine="h5netcdf") as opened:
                tree = opened.load()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: not a netCDF file of a fit ({error}).") from None
        if tree.attrs.get("kind") != "bayes_sd fit" or any(g not in tree for g in GROUPS):
            raise InputError(f"{path}: a netCDF file, but not a fit saved by bayes_sd.")
        if int(tree.attrs["format"]) != FORMAT:
            raise InputError(
                f"{path}: format {tree.attrs['format']}, this version reads {FORMAT}; "
                "fit the traces again."
            )
        return cls(tree)
