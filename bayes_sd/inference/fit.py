"""Fit: the frozen result of a model and traces, and its file."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.inference.gate import Convergence
from bayes_sd.physics.costs import Law
from bayes_sd.predict.answers import BreakEven, Latency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bayes_sd.decide.schedule import Schedule
    from bayes_sd.predict.system import System

FORMAT = 3  # of the file; raised when a reader must know
GROUPS = ("posterior", "acceptance", "runs", "verifiers", "drafters")


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

    def thin(self, draws: int) -> "Fit":
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
        return Fit(result)

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
        if int(tree.attrs["format"]) != FORMAT:
            raise InputError(
                f"{path}: format {tree.attrs['format']}, this version reads {FORMAT}; "
                "fit the traces again."
            )
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
        metric : {"e2e", "ttft", "tpot"}
            End-to-end latency, time to first token, or time per output token after it.
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

    def schedule(
        self,
        k: "Sequence[int]",
        system: "System | None" = None,
        *,
        prompt: float,
        output: float,
        max_batch: int = 64,
        loss: str = "mean",
        slo_s: float | None = None,
        confidence: float = 0.6,
        extrapolate: bool = False,
        seed: int = 0,
    ) -> "Schedule":
        """The best draft length for every number of requests in flight, for vLLM to apply.

        At each batch size the latency beside ``batch - 1`` others decides. The smallest `k` that
        the best one does not beat with probability `confidence` is chosen, so ties and weak
        evidence draft less.

        Parameters
        ----------
        k : sequence of int
            Candidates, at least two; 0 is the server with its drafter idle.
        system : System, optional
            With a drafter.
        prompt, output : float
            Tokens per request.
        max_batch : int
            Largest batch size (vLLM's ``--max-num-seqs``).
        loss : str
            What is minimised: "mean" latency, or a percentile of single requests as "p95".
        slo_s : float, optional
            Instead of `loss`: the chance that a request takes longer, seconds.
        confidence : float
            In [0.5, 1).
        extrapolate : bool
            Allow a `k` that was never measured with this verifier and drafter.
        seed : int

        Returns
        -------
        Schedule
            ``rows``, ``to_vllm()``, ``speculative_config()``, ``command_line()``.

        Raises
        ------
        InputError
            If an argument is out of range, or a `k` was not measured.
        """
        from bayes_sd.decide.schedule import schedule

        return schedule(
            self, k, system, prompt, output, max_batch, loss, slo_s, confidence, extrapolate, seed
        )

    def capacity(
        self,
        slo_s: float,
        k: "int | Sequence[int]" = 0,
        system: "System | None" = None,
        *,
        prompt: float,
        output: float,
        percentile: float = 95.0,
        confidence: float = 0.9,
        traffic_rps: float | None = None,
        price_per_hour: float | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """The largest rate at which a percentile of latency keeps a target, and what it costs.

        In every draw one rate meets the target exactly; the answer is the rate that so many draws
        as `confidence` says reach or exceed.

        Parameters
        ----------
        slo_s : float
            Target for the percentile of end-to-end latency, seconds.
        k : int or list of int
            Draft tokens per cycle; 0 is the plain server.
        system : System, optional
        prompt, output : float
            Tokens per request.
        percentile : float
            Of single requests.
        confidence : float
            Probability that the target is kept, in (0, 1).
        traffic_rps : float, optional
            Requests/s to be served; gives ``replicas``.
        price_per_hour : float, optional
            Of one replica; gives ``price_per_million_tokens`` (output tokens) at ``max_rps``.
        seed : int

        Returns
        -------
        pandas.DataFrame
            A row a `k`: ``max_rps`` (NaN where the target cannot be kept at any load with this
            confidence), ``median_rps``, ``prob_possible`` and ``idle_s`` (chance that an idle
            server keeps it, and the percentile there), ``support``.

        Raises
        ------
        InputError
            If an argument is out of range.
        """
        from bayes_sd.decide.capacity import capacity

        return capacity(
            self,
            k,
            system,
            slo_s,
            prompt,
            output,
            percentile,
            confidence,
            traffic_rps,
            price_per_hour,
            seed,
        )

    def coefficients(self) -> pd.DataFrame:
        """Fitted coefficients in natural units with their 90% equal-tailed intervals."""
        from bayes_sd.report.tables import coefficients

        return coefficients(self)

    def compare_families(self, prob: float = 0.9) -> pd.DataFrame:
        """How mixtures of experts differ from dense models of the same sizes, cost by cost.

        Parameters
        ----------
        prob : float
            Probability of the equal-tailed intervals.

        Returns
        -------
        pandas.DataFrame
            A row a stage cost of a verifier as large as the fit's mixtures of experts, at the
            runs' mean load: ``dense_ms`` and ``moe_ms`` (medians), ``difference_ms`` with
            ``low_ms`` and ``high_ms``, ``ratio`` and ``prob_slower``.

        Raises
        ------
        EvidenceError
            If one of the families was not measured.
        """
        from bayes_sd.report.families import compare_families

        return compare_families(self, prob)

    def collapse(self) -> dict[str, float]:
        """R^2 (log scale) by family and mean absolute relative error of the fitted run means."""
        from bayes_sd.report.tables import collapse

        return collapse(self.runs)
