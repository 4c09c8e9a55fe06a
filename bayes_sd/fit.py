"""Fit: the frozen result of a model and runs, and the questions it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bayes_sd.answers.capacity import Capacity, Prices, Servers, capacity
from bayes_sd.answers.compare import BreakEven, Comparison, break_even, compare
from bayes_sd.answers.fitted import accuracy, coefficient_table, families, predict
from bayes_sd.answers.latency import Latency, latency
from bayes_sd.answers.next_runs import NextRuns, next_runs
from bayes_sd.answers.schedule import Schedule, schedule
from bayes_sd.answers.servers import Server
from bayes_sd.model.posterior import Posterior
from bayes_sd.runs.load import Load
from bayes_sd.runs.schema import Runs


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Posterior):
    """A fitted latency model: posterior draws, the runs they come from, and answers.

    Every question takes a load, then servers, and gives an answer with ``draws``, ``table``,
    ``plot()`` and a sentence as ``str()``. In all of them `extrapolate` allows answers far outside
    of what was measured (sizes, lengths, requests in flight more than a factor of 4; draft lengths
    outside those measured), which are labelled "extrapolated", and `seed` is for what the posterior
    predictive adds to the posterior.

    Parameters
    ----------
    tree : xarray.DataTree
        Groups ``posterior`` (natural units; dims chain, draw and the levels), ``acceptance``,
        ``runs``, ``verifiers``, ``drafters`` and ``servers``; JSON in the attributes ``spec``,
        ``provenance`` and ``sampling``.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> fit = bsd.Fit.load("fit.nc")  # doctest: +SKIP
    >>> plain, eagle = bsd.Server("llama-8b"), bsd.Server("llama-8b", "eagle", k=3)
    >>> load = bsd.Load(rps=[1, 2, 4], prompt=512, output=256)
    >>> print(fit.compare(load, eagle, plain))  # doctest: +SKIP
    """

    def latency(
        self,
        load: Load,
        servers: Server | Sequence[Server],
        *,
        metric: str = "e2e",
        extrapolate: bool = False,
        seed: int = 0,
    ) -> Latency:
        """Posterior predictive latency of servers over a load.

        Parameters
        ----------
        load : Load
        servers : Server or sequence of Server
        metric : {"e2e", "ttft", "tpot"}
            End-to-end latency, time to first token, or time per output token after it.
        extrapolate : bool
        seed : int

        Returns
        -------
        Latency
            Draws in seconds, infinite past saturation; ``quantile``, ``prob_saturated``.

        Raises
        ------
        InputError
            If a server is neither measured nor given by size, or an argument is out of range.
        EvidenceError
            If the question lies far outside of what was measured.
        """
        return latency(self, load, servers, metric, extrapolate, seed)

    def compare(
        self,
        load: Load,
        server: Server,
        baseline: Server,
        *,
        of: str = "mean",
        extrapolate: bool = False,
        seed: int = 0,
    ) -> Comparison:
        """P(server beats baseline | load), and the speedup.

        Parameters
        ----------
        load : Load
        server, baseline : Server
            As SD and plain decoding of one verifier.
        of : {"mean", "run", "request"}
            What is compared: the long-run mean latencies, the means of one run each, or one request
            drawn at random from each server.
        extrapolate : bool
        seed : int

        Returns
        -------
        Comparison

        Raises
        ------
        EvidenceError
            If the baseline is plain and its verifier has no plain run.
        """
        return compare(self, load, server, baseline, of, extrapolate, seed)

    def break_even(
        self,
        load: Load,
        server: Server,
        baseline: Server,
        *,
        extrapolate: bool = False,
        seed: int = 0,
    ) -> BreakEven:
        """Load up to which a server is faster in the mean, with the chances of never and always.

        Parameters
        ----------
        load : Load
            Says the lengths, and whether a rate or a concurrency is looked for.
        server, baseline : Server
        extrapolate : bool
        seed : int

        Returns
        -------
        BreakEven
        """
        return break_even(self, load, server, baseline, extrapolate, seed)

    def schedule(
        self,
        load: Load,
        server: Server,
        *,
        k: Sequence[int],
        max_batch: int | None = None,
        loss: str = "mean",
        slo_s: float | None = None,
        confidence: float = 0.6,
        extrapolate: bool = False,
        seed: int = 0,
    ) -> Schedule:
        """The best draft length for every number of requests in flight, for vLLM to apply.

        At each batch size the latency beside ``batch - 1`` others decides. The smallest `k` that
        the best one does not beat with probability `confidence` is chosen, so ties and weak
        evidence draft less. The latency of a server that follows it is given at the load.

        Parameters
        ----------
        load : Load
            One pair of lengths; rates or concurrencies at which the schedule's latency is wanted.
        server : Server
            With a drafter; its own draft length does not matter.
        k : sequence of int
            Candidates, at least two; 0 is the server with its drafter idle.
        max_batch : int, optional
            Largest batch size (vLLM's ``--max-num-seqs``); by default 64, or the highest
            concurrency of the load.
        loss : str
            What is minimised: "mean" latency, or a percentile of single requests as "p95".
        slo_s : float, optional
            Instead of `loss`: the chance that a request takes longer, seconds.
        confidence : float
            In [0.5, 1).
        extrapolate : bool
        seed : int

        Returns
        -------
        Schedule
            ``table``, ``latency``, ``to_vllm()``, ``speculative_config()``, ``command_line()``.

        Raises
        ------
        InputError
            If an argument is out of range.
        EvidenceError
            If a `k` is outside those measured, or no draft length can be expected to keep the SLO
            even alone.
        """
        return schedule(
            self, load, server, k, max_batch, loss, slo_s, confidence, extrapolate, seed
        )

    def capacity(
        self,
        load: Load,
        servers: Servers,
        *,
        slo_s: float,
        percentile: float = 95.0,
        confidence: float = 0.9,
        replicas: int | None = None,
        price_per_hour: Prices | None = None,
        extrapolate: bool = False,
        seed: int = 0,
    ) -> Capacity:
        r"""The most that servers sustain within a latency target, replicas, cost, and who wins.

        The load is split evenly among `n` replicas. In a draw :math:`\theta` a server serves

        .. math:: s_n(\theta) = \frac{\sum_w \lambda_w T_w\,
            P(\text{latency} \le \text{SLO} \mid \lambda_w / n, P_w, g_w, \theta)}
            {\sum_w \lambda_w T_w}

        of all requests in time, over windows `w` of `T` seconds; it gets the fewest replicas with
        :math:`P(s_n \ge \text{percentile}) \ge \text{confidence}`. Requests of a saturated window
        are late; its backlog is not carried into the next one, so look at ``prob_saturated``.

        Parameters
        ----------
        load : Load
            One rate or concurrency, or traffic over time from :meth:`bayes_sd.Load.read`.
        servers : Server, sequence of Server, or mapping of names to Server
        slo_s : float
            Target for the percentile of end-to-end latency of all requests, seconds.
        percentile : float
            Of single requests.
        confidence : float
            Probability that the target is kept, in (0, 1).
        replicas : int, optional
            Compare so many of each, whether or not they keep the target.
        price_per_hour : float or mapping, optional
            Of one replica; by name where they differ.
        extrapolate : bool
        seed : int

        Returns
        -------
        Capacity
            In regrets a latency or a bill counts as 20 times the best one's at most, since that of
            a saturated server has no bound.

        Raises
        ------
        InputError
            If an argument is out of range.
        """
        return capacity(
            self,
            load,
            servers,
            slo_s,
            percentile,
            confidence,
            replicas,
            price_per_hour,
            extrapolate,
            seed,
        )

    def next_runs(
        self,
        load: Load,
        servers: Sequence[Server],
        *,
        runs: int = 6,
        run_seconds: float = 30.0,
        server_seconds: float = 60.0,
        server: str = "measured",
        extrapolate: bool = False,
        seed: int = 0,
    ) -> NextRuns:
        r"""What choosing a server now may cost, and the runs that would lower that most.

        .. math:: R = E_\theta\big[L_{s^*}(\theta) - \min_s L_s(\theta)\big], \qquad
            \text{a run } y \text{ saves } R - E_y[R \mid y]

        Parameters
        ----------
        load : Load
            Loads at which the choice is made, each counting alike; the runs proposed are at the
            same ones.
        servers : sequence of Server
            To choose from, at least two.
        runs : int
            How many to propose, one after the other.
        run_seconds, server_seconds : float
            What a run, and starting a server for its first one, take.
        server : {"measured", "next"}
            Whom the choice is for: the servers that were, or would be, measured; or others yet to
            be started, whose own effect no run shows.
        extrapolate : bool
        seed : int

        Returns
        -------
        NextRuns
            ``choices``, ``regret_ms``, ``table``; :func:`bayes_sd.plan` makes files of it.
        """
        return next_runs(
            self, load, servers, runs, run_seconds, server_seconds, server, extrapolate, seed
        )

    def predict(self, runs: Runs, *, prob: float = 0.9, seed: int = 0) -> pd.DataFrame:
        """Predict the mean latency of measured runs, as of held-out ones.

        Parameters
        ----------
        runs : Runs
            Steady runs are predicted, saturated ones left out.
        prob : float
            Probability of the equal-tailed predictive interval.
        seed : int

        Returns
        -------
        pandas.DataFrame
            The runs with ``predicted_s`` (median), ``low_s``, ``high_s``, ``inside``, ``log_score``
            (log density of the log mean) and ``pit``.

        Raises
        ------
        EvidenceError
            If a run is of an environment that the fit does not know.
        """
        return predict(self, runs, prob, seed)

    def coefficients(self, prob: float = 0.9) -> pd.DataFrame:
        """Fitted coefficients: median and equal-tailed interval, unit and meaning."""
        return coefficient_table(self, prob)

    def families(self, prob: float = 0.9) -> pd.DataFrame:
        """How mixtures of experts differ from dense models of the same sizes, cost by cost.

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
        return families(self, prob)

    def accuracy(self) -> Mapping[str, float]:
        """R^2 (log scale) by family and mean relative error of the fitted run means."""
        return accuracy(self.runs)
