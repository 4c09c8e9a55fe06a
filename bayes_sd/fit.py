"""Fit: the frozen result of a model and runs, and the questions it answers."""

from dataclasses import dataclass

from bayes_sd.answers import capacity as _capacity
from bayes_sd.answers import compare as _compare
from bayes_sd.answers import fitted as _fitted
from bayes_sd.answers import latency as _latency
from bayes_sd.answers import next_runs as _next_runs
from bayes_sd.answers import schedule as _schedule
from bayes_sd.model.posterior import Posterior


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

    latency = _latency.latency
    compare = _compare.compare
    break_even = _compare.break_even
    schedule = _schedule.schedule
    capacity = _capacity.capacity
    next_runs = _next_runs.next_runs
    predict = _fitted.predict
    coefficients = _fitted.coefficient_table
    families = _fitted.families
    accuracy = _fitted.accuracy
    decisions = _fitted.decisions
    plot_collapse = _fitted.plot_collapse
