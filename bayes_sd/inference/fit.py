"""Fit: the frozen result of a model and traces, and its file."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.inference.acceptance import acceptance_draws
from bayes_sd.inference.gate import Convergence
from bayes_sd.inference.sample import Sampling
from bayes_sd.model.design import Design
from bayes_sd.model.priors import Prior
from bayes_sd.predict.answers import BreakEven, Latency

if TYPE_CHECKING:
    from bayes_sd.predict.system import System
    from bayes_sd.traces import Traces

FORMAT = 2  # of the file; raised when a reader must know
GROUPS = ("posterior", "acceptance", "runs", "verifiers", "drafters")
DRAWN = ("law", "noise", "moe", "tau_verifier", "tau_drafter", "tau_system", "tau_environment")
FACTORS = ("factor_verifier", "factor_drafter", "factor_system", "factor_environment")


class ConvergenceError(EvidenceError):
    """A fit that did not pass the gate. ``fit`` and ``table`` (a row a parameter) come with it."""

    def __init__(self, fit: "Fit", convergence: Convergence) -> None:
        super().__init__(
            "The fit did not converge: "
            + " ".join(convergence.complaints)
            + " Try more draws (draws=, tune=), a higher target_accept, or more runs."
        )
        self.fit = fit
        self.table = convergence.table


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A fitted latency model: posterior draws, the runs they come from, and answers.

    Parameters
    ----------
    tree : xarray.DataTree
        Groups ``posterior`` (natural units; dims chain, draw and the levels), ``acceptance``,
        ``runs``, ``verifiers`` and ``drafters``; JSON in the attributes ``spec``, ``provenance``
        and ``sampling``.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> fit = bsd.Fit.load("fit.nc")                                        # doctest: +SKIP
    >>> load = bsd.grid(rps=[1, 2, 4], prompt=512, output=256)
    >>> fit.prob_faster(load, k=3, system=bsd.System("llama-8b", "eagle"))  # doctest: +SKIP
    """

    tree: xr.DataTree

    @property
    def posterior(self) -> xr.Dataset:
        """Draws in natural units, dims (chain, draw, ...)."""
        return self.tree["posterior"].to_dataset()

    @property
    def runs(self) -> pd.DataFrame:
        """The fitted runs, with ``system``, ``pair``, fitted latency (s) and utilization."""
        return self._runs.copy()

    @cached_property
    def _runs(self) -> pd.DataFrame:
        return self.tree["runs"].to_dataset().to_dataframe().reset_index(drop=True)

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
            If the folder does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist.")
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.tree.to_netcdf(draft, engine="h5netcdf")
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Fit":
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
        if int(tree.attrs["format"]) > FORMAT:
            raise InputError(
                f"{path}: format {tree.attrs['format']}, this version reads up to {FORMAT}."
            )
        if int(tree.attrs["format"]) < 2:  # overheads a pass, not a layer; KV a token, not a GB
            tree["verifiers"] = tree["verifiers"].to_dataset().assign(layers=1.0, kv_gb=1.0)
        return Fit(tree)

    def latency(
        self,
        load: xr.Dataset,
        k: int | list[int] = 0,
        system: "System | None" = None,
        *,
        metric: str = "e2e",
        seed: int = 0,
    ) -> Latency:
        """Posterior predictive latency over a load grid.

        Parameters
        ----------
        load : xarray.Dataset
            From :func:`bayes_sd.grid`: rates or concurrencies, prompt and output tokens.
        k : int or list of int
            Draft tokens per cycle; 0 is the plain server.
        system : System, optional
            Verifier and drafter; may be left out when the fit has one of each.
        metric : {"e2e", "ttft"}
            End-to-end latency or time to first token.
        seed : int
            For what the posterior predictive adds to the posterior.

        Returns
        -------
        Latency
            Draws in seconds, infinite past saturation; ``quantile``, ``prob_saturated``, ``table``.

        Raises
        ------
        InputError
            If the system is not among the measured ones and not given as new.
        """
        from bayes_sd.predict.latency import latency

        return latency(self, load, k, system, metric, seed)

    def prob_faster(
        self,
        load: xr.Dataset,
        k: int | list[int],
        system: "System | None" = None,
        *,
        of: str = "mean",
        seed: int = 0,
    ) -> xr.Dataset:
        """P(SD beats plain | load).

        Parameters
        ----------
        load : xarray.Dataset
            From :func:`bayes_sd.grid`.
        k : int or list of int
            Draft tokens per cycle, at least 1.
        system : System, optional
        of : {"mean", "run", "request"}
            What is compared: the long-run mean latencies, the means of one run each, or one request
            drawn at random from each server.
        seed : int

        Returns
        -------
        xarray.Dataset
            ``prob_faster``, ``prob_slower`` and ``prob_both_saturated``, which sum to 1, and
            ``support`` (measured, interpolated, extrapolated), by k and load.

        Raises
        ------
        EvidenceError
            If the verifier has no plain run to compare with.
        """
        from bayes_sd.predict.compare import prob_faster

        return prob_faster(self, load, k, system, of, seed)

    def speedup(
        self, load: xr.Dataset, k: int | list[int], system: "System | None" = None, *, seed: int = 0
    ) -> xr.DataArray:
        """Draws of plain over SD mean latency; above 1 SD is faster.

        Infinite where only plain is saturated, 0 where only SD is, NaN where both are (no latency
        exists to compare). Dims (chain, draw, k, load).
        """
        from bayes_sd.predict.compare import speedup

        return speedup(self, load, k, system, seed)

    def break_even(
        self,
        k: int | list[int],
        system: "System | None" = None,
        *,
        prompt: float,
        output: float,
        seed: int = 0,
    ) -> BreakEven:
        """Rate up to which SD is faster in the mean, with the chances of never and always.

        Parameters
        ----------
        k : int or list of int
            Draft tokens per cycle, at least 1.
        system : System, optional
        prompt, output : float
            Tokens per request.
        seed : int

        Returns
        -------
        BreakEven
            Draws of the rate (requests/s) and ``table()``.
        """
        from bayes_sd.predict.compare import break_even

        return break_even(self, k, system, prompt, output, seed)

    def coefficients(self) -> pd.DataFrame:
        """Fitted coefficients in natural units with their 90% equal-tailed intervals."""
        from bayes_sd.report.tables import coefficients

        return coefficients(self)

    def collapse(self) -> dict[str, float]:
        """R^2 (log scale) by family and mean absolute relative error of the fitted run means."""
        from bayes_sd.report.tables import collapse

        return collapse(self.runs)


def assemble(
    tree: xr.DataTree,
    design: Design,
    traces: "Traces",
    priors: tuple[Prior, ...],
    how: Sampling,
    seed: int,
    used: dict[str, Any],
    convergence: Convergence,
) -> Fit:
    """Put draws, data, specification and provenance into one Fit."""
    from bayes_sd.predict.runs import fitted

    posterior = tree["posterior"].to_dataset()
    posterior = posterior[[name for name in (*DRAWN, *FACTORS) if name in posterior]]
    posterior.attrs = {}
    runs = design.runs.copy()
    for name in runs.columns[runs.dtypes == "str"]:
        runs[name] = runs[name].astype(object)
    verifiers = xr.Dataset(
        {n: ("verifier", v) for n, v in design.verifiers.items()},
        coords={"verifier": design.levels["verifier"]},
    )
    drafters = xr.Dataset(
        {"drafter_size": ("drafter", design.drafters)},
        coords={"drafter": design.levels["drafter"]},
    )
    acceptance = acceptance_draws(
        design.runs, posterior.sizes["chain"], posterior.sizes["draw"], seed
    )

    def groups(runs: pd.DataFrame) -> xr.DataTree:
        return xr.DataTree.from_dict(
            {
                "posterior": posterior,
                "acceptance": acceptance,
                "runs": xr.Dataset.from_dataframe(runs.rename_axis("run")),
                "verifiers": verifiers,
                "drafters": drafters,
            }
        )

    if not convergence.nonfinite:
        runs = runs.assign(**fitted(Fit(groups(runs)), runs))
    result = groups(runs)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    packages = ("bayes_sd", "pymc", "nutpie", "arviz", "numpy", "xarray")
    result.attrs = {
        "kind": "bayes_sd fit",
        "format": FORMAT,
        "spec": json.dumps({"priors": [asdict(p) for p in priors], **asdict(how), "seed": seed}),
        "sampling": json.dumps(convergence.summary | used),
        "provenance": json.dumps(
            {
                "created": now,
                "environment": design.environment,
                "runs": len(runs),
                "requests": int(runs["requests"].sum()),
                "runs_read": len(traces),
                "runs_not_steady": int(traces.runs["saturated"].sum()),
                "versions": {name: _version(name) for name in packages},
            }
        ),
    }
    return Fit(result)


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "not installed"
