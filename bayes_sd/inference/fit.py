"""Fit: the frozen result of a model and traces, and the questions it answers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError
from bayes_sd.inference.gate import Convergence
from bayes_sd.inference.stored import Stored
from bayes_sd.predict.answers import BreakEven, Latency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bayes_sd.decide.information import Information
    from bayes_sd.decide.schedule import Schedule
    from bayes_sd.predict.system import System
    from bayes_sd.traces.traffic import Traffic


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
class Fit(Stored):
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
        EvidenceError
            If no draft length can be expected to keep the SLO even alone.
        """
        from bayes_sd.decide.schedule import schedule

        return schedule(
            self, k, system, prompt, output, max_batch, loss, slo_s, confidence, extrapolate, seed
        )

    def scheduled(
        self,
        schedule: "Schedule",
        system: "System | None" = None,
        *,
        rps: "float | Sequence[float]",
        prompt: float,
        output: float,
        seed: int = 0,
    ) -> Latency:
        """Posterior predictive latency of a server that follows a schedule.

        Requests come and go at random, and the draft length with their number, so the latency is
        Little's over the distribution of the requests in flight; see
        :func:`bayes_sd.physics.occupancy.occupancy`.

        Parameters
        ----------
        schedule : Schedule
            From :meth:`schedule`; at more requests than it covers they wait.
        system : System, optional
            The one it was made for.
        rps : float or sequence of float
            Offered rates, requests/s, above 0.
        prompt, output : float
            Tokens per request.
        seed : int

        Returns
        -------
        Latency
            As from :meth:`latency`, with the coordinate ``k`` = "schedule".
        """
        from bayes_sd.decide.scheduled import scheduled

        return scheduled(self, schedule, system, rps, prompt, output, seed)

    def capacity(
        self,
        slo_s: float,
        k: "int | Sequence[int]" = 0,
        system: "System | None" = None,
        *,
        prompt: float | None = None,
        output: float | None = None,
        percentile: float = 95.0,
        confidence: float = 0.9,
        traffic: "float | Traffic | None" = None,
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
        prompt, output : float, optional
            Tokens per request; left out where `traffic` has them.
        percentile : float
            Of single requests.
        confidence : float
            Probability that the target is kept, in (0, 1).
        traffic : float or Traffic, optional
            Requests/s to be served, or windows of them from :func:`bayes_sd.read_traffic`, which
            have their own lengths; gives ``replicas``.
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
            traffic,
            price_per_hour,
            seed,
        )

    def worth_measuring(
        self,
        k: "Sequence[int]",
        system: "System | None" = None,
        *,
        rps: "float | Sequence[float]",
        prompt: float,
        output: float,
        runs: int = 6,
        run_seconds: float = 30.0,
        server_seconds: float = 60.0,
        server: str = "measured",
        seed: int = 0,
    ) -> "Information":
        r"""What choosing a draft length now may cost, and the runs that would lower that most.

        .. math:: R = E_\theta\big[L_{k^*}(\theta) - \min_k L_k(\theta)\big], \qquad
            \text{a run } y \text{ saves } R - E_y[R \mid y]

        Parameters
        ----------
        k : sequence of int
            Arms to choose from, at least two; 0 is the plain server.
        system : System, optional
        rps : float or sequence of float
            Rates (requests/s) at which the choice is made, each counting alike; the runs proposed
            are at the same rates.
        prompt, output : float
            Tokens per request.
        runs : int
            How many to propose, one after the other.
        run_seconds, server_seconds : float
            What a run, and starting a server for its first one, take.
        server : {"measured", "next"}
            Whom the choice is for: the servers that were, or would be, measured, as in
            :meth:`prob_faster`; or others yet to be started, whose own effect no run shows.
        seed : int

        Returns
        -------
        Information
            ``choices``, ``regret_ms``, ``runs``; ``to_plan(plan)`` makes them a plan to collect.

        Raises
        ------
        InputError
            If an argument is out of range.
        """
        from bayes_sd.decide.information import worth_measuring

        return worth_measuring(
            self, k, system, rps, prompt, output, runs, run_seconds, server_seconds, server, seed
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
