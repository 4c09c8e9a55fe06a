"""Posterior predictive latency of servers over loads, and what every answer looks like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.servers import Resolved, Server, listed, resolve, shared_name
from bayes_sd.errors import EvidenceError, InputError, one_of, require, whole
from bayes_sd.model.acceptance import generator
from bayes_sd.model.design import workload
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics import noise
from bayes_sd.physics.law import SOFTNESS, Outcome, capacity_rps, placed_outcome
from bayes_sd.physics.structures import Placed
from bayes_sd.runs.load import Load
from bayes_sd.runs.table import LENGTHS

MEASURED = ("server", *answer.UNITS, "mean_s")  # columns of measured runs
OF = ("mean", "run", "request")
BLOCK = 2**14  # numbers of an array at a time: all that the law makes of them stay in cache
SATURATED = 0.05  # probability from which a sentence leaves a load to the table


def cells_of(load: Load) -> dict[str, np.ndarray]:
    """Flat arrays of a load, one entry a cell."""
    cells = load.cells
    sizes = dict(cells.sizes)
    return {str(n): v.set_dims(sizes).values.ravel() for n, v in cells.variables.items()}


def by_draws(function: Callable[..., Outcome], draws: int, *given: Any) -> Outcome:
    """What a function says of arrays (draws, cells), block by block."""
    every = list[Any]()
    _changed(given, every.append)
    arrays = [x for x in every if isinstance(x, np.ndarray) and x.ndim]
    # None where the page traces the law.
    drawn = {id(x) for x in arrays if x.ndim == 2 and len(x) == draws}
    size = max(BLOCK // max(x.shape[-1] for x in arrays), 2) if drawn else draws

    def cut(x: Any, part: slice) -> Any:
        return x[part] if id(x) in drawn else x

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        parts = (_changed(given, cut, slice(i, i + size)) for i in range(0, draws, size))
        blocks = [function(*part) for part in parts]
    if len(blocks) == 1:
        return blocks[0]
    # What does not depend on draws is the same in each block.
    each = zip(*blocks, strict=True)
    full = ((x, np.ndim(x[0]) == 2 and len(x[0]) == size) for x in each)
    return Outcome(*(np.concatenate(x) if whole else x[0] for x, whole in full))


def _changed(given: Any, change: Callable[..., Any], *how: Any) -> Any:
    """Tuples, lists and dictionaries with a change to each number and array in them."""
    if isinstance(given, dict):
        return {name: _changed(each, change, *how) for name, each in given.items()}
    if isinstance(given, tuple | list):
        each = [_changed(one, change, *how) for one in given]
        return type(given)(*each) if hasattr(given, "_fields") else each
    return change(given, *how)


@dataclass(frozen=True, eq=False)
class Arm:
    """A server at the lengths of a load: what no rate or concurrency changes is computed once."""

    fit: Posterior
    resolved: Resolved
    cells: dict[str, np.ndarray]
    far: np.ndarray  # of every cell
    apart: bool = False  # prompts of so many in flight come one by one, as at a rate

    def inputs(self, axis_values: Any = None) -> dict[str, Any]:
        """The law's workload at the load's own rates or concurrencies, or at others."""
        axis = "concurrency" if "concurrency" in self.cells else "rate_rps"
        cells = self.cells if axis_values is None else self.cells | {axis: axis_values}
        server, acceptance = self.resolved.server, self.resolved.acceptance
        loaded = int(server.drafter is not None)
        inputs = workload(k=server.k, drafter_loaded=loaded, acceptance=acceptance, **cells)
        return inputs | ({"together": 0.0} if self.apart else {})

    def placed(self, inputs: dict[str, Any]) -> Placed:
        """Stage costs where they run: on one server, or in an assumed structure."""
        terms, sizes = self.resolved.coefficients, self.resolved.sizes
        stages = self.fit.law.stages(terms, sizes, inputs)
        place = self.resolved.place
        return Placed((stages,)) if place is None else place(stages, sizes, inputs)

    @property
    def capacity_rps(self) -> Any:
        """Rate at which it saturates, requests/s."""
        return capacity_rps(self.placed(inputs := self.inputs()), inputs, self.fit.law)

    def outcome(self, axis_values: Any = None) -> tuple[Outcome, dict[str, Any]]:
        """What the law says, infinite past the pole, and the workload it says it of."""
        inputs, sizes = self.inputs(axis_values), self.resolved.sizes

        def of(placed: Placed, inputs: Any) -> Outcome:
            said = placed_outcome(placed, sizes, inputs, self.fit.law)
            # Past the pole the fixed point has no root and infinity times zero is not a number.
            return said._replace(e2e_s=np.where(said.utilization >= 1, np.inf, said.e2e_s))

        return by_draws(of, self.fit.draws, self.placed(inputs), inputs), inputs

    def support(self, said: Outcome) -> np.ndarray:
        """Label of every cell."""
        return answer.support(self.fit, self.resolved, self.cells, said, self.far)


def scatter(
    fit: Posterior, said: Outcome, inputs: Any, metric: str = "e2e", requests: Any = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Scale of a run's log mean, variance of its requests' log latencies; finite past the pole."""
    finite = np.isfinite(said.e2e_s)

    def kept(value: Any, otherwise: Any) -> np.ndarray:
        return np.where(finite & np.isfinite(value), value, otherwise)

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        bounded = said._replace(
            e2e_s=kept(said.e2e_s, 1.0),
            ttft_s=kept(said.ttft_s, 1.0),
            prefill_s=kept(said.prefill_s, 0.0),
            c1_s=kept(said.c1_s, said.c2_s),
            added_s=kept(said.added_s, said.c2_s),
            others_share=np.minimum(kept(said.others_share, 1.0), 1.0),
        )
        growth = np.minimum(np.where(np.isnan(said.growth), np.inf, said.growth), 1 / SOFTNESS)
        scale = noise.run_scale(metric, fit.noise, growth, requests, bounded.others_share)
        return scale, noise.request_variance(metric, fit.noise, bounded, inputs)


def arm_of(
    fit: Posterior,
    server: Server,
    load: Load,
    seed: int = 0,
    extrapolate: bool = False,
    started_anew: str | None = None,
) -> Arm:
    """A server at a load, within what may be asked of the fit."""
    require("load", load, isinstance(load, Load), "bsd.Load(...)")
    ran = sorted({*fit.servers["workload"]} - {""})
    if (asked := server.workload) and asked not in ran:
        raise InputError(f"No run was of workload {asked!r}; known are {', '.join(ran) or 'none'}.")
    resolved = resolve(fit, server, seed, started_anew)
    cells = cells_of(load)
    why = answer.far_outside(fit, resolved, cells)
    if why and not extrapolate:
        raise EvidenceError(why)
    each = (dict(zip(cells, one, strict=True)) for one in zip(*cells.values(), strict=True))
    far = [bool(why and answer.far_outside(fit, resolved, cell)) for cell in each]
    return Arm(fit, resolved, cells, np.array(far))


@dataclass(frozen=True, eq=False, repr=False)
class Latency(answer.Answer):
    """Posterior predictive latency.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, server, load): ``mean_s``, the long-run mean; ``run_s``, the mean that
        one run of so many requests as its attribute ``requests`` says would show; ``request_s``,
        one request drawn at random; seconds, infinite where ``saturated``. ``support`` (server,
        load) is measured, interpolated, extrapolated, data sheet or assumed structure.
    metric : str
        "e2e", "ttft" or "tpot".
    measured : pandas.DataFrame
        Runs of these servers, for plots: ``server``, ``rate_rps``, ``concurrency``, ``mean_s``.
    servers : tuple of Server
        As asked.
    """

    draws: xr.Dataset
    metric: str
    measured: pd.DataFrame
    servers: tuple[Server, ...]

    @property
    def prob_saturated(self) -> xr.DataArray:
        """Probability that the rate is at or past capacity, by server and load."""
        return self.draws["saturated"].mean(answer.SAMPLE)

    def quantile(self, q: float | Sequence[float], of: str = "request") -> xr.DataArray:
        """Quantiles in seconds of a "request", a "run" or the "mean"; infinite past saturation."""
        one_of("of", of, OF)
        return answer.quantile(self.draws[f"{of}_s"], q)

    @property
    def table(self) -> pd.DataFrame:
        """A row a server and load: median and 90% interval of the long-run mean and of one run,
        request percentiles, P(saturated), support."""
        wanted = {"mean": (0.05, 0.5, 0.95), "run": (0.05, 0.95), "request": (0.5, 0.95, 0.99)}
        parts: dict[str, Any] = {}
        for of, probs in wanted.items():
            parts |= answer.percentiles(self.draws[f"{of}_s"], probs, of + "_{}_s")
        parts |= {"prob_saturated": self.prob_saturated, "support": self.draws["support"]}
        return xr.Dataset(parts).to_dataframe().reset_index()

    def __str__(self) -> str:
        sentences, axis = [], self.axis
        for name, rows in self.table.groupby("server", sort=False):
            served = rows[rows["prob_saturated"] < SATURATED]
            row, last = (served if len(served) else rows).iloc[-1], rows.iloc[-1]
            where = "" if axis is None else f" at {answer.with_unit(f'{row[axis]:.3g}', axis)}"
            full = "" if axis is None else f" at {last[axis]:.3g}"
            sentences.append(
                f"{name}{where}: mean {self.metric} {row['mean_p50_s']:.3g} s (90%: "
                f"{row['mean_p05_s']:.3g} to {row['mean_p95_s']:.3g}; of one run "
                f"{row['run_p05_s']:.3g} to {row['run_p95_s']:.3g}), 95% of requests within "
                f"{row['request_p95_s']:.3g} s ({row['support']}); P(saturated){full} "
                f"{last['prob_saturated']:.2f}."
            )
        return "\n".join(sentences)

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """Mean of a run against load with 90% bands, a line a server, and the measured runs."""
        ax, axis = answer.axes_of(ax), self.axis_to_plot()
        data = self.draws["run_s"]
        data = data.isel({d: 0 for d in data.dims if d not in (*answer.SAMPLE, "server", axis)})
        pair, short = shared_name(self.servers)
        for i, name in enumerate(self.draws["server"].values):
            values = answer.quantile(data.sel(server=name), [0.05, 0.5, 0.95])
            own = self.measured[self.measured["server"] == name]
            answer.band(ax, data[axis].values, values.values, i, short.get(name, name))
            answer.points(ax, own[axis], own["mean_s"], i)
        label = {"e2e": "mean latency", "ttft": "mean TTFT", "tpot": "mean TPOT"}[self.metric]
        about = "\nbands: 90% of runs" + "; points: measured runs" * (len(self.measured) > 0)
        unit = f"{answer.UNITS[axis]}{about}"
        return answer.finish(ax, unit, f"{label}, s", log=True, title=pair)


def observable(
    fit: Posterior, load: Load, server: str, drawn: tuple, labels: Any, requests: int, seed: int
) -> xr.Dataset:
    """Draws of one server, see :class:`Latency`: of the mean, and of what would be measured.

    `drawn` are the mean (s), whether it is saturated, and what :func:`scatter` gives. Every server
    and cell of a load has random numbers of its own, whatever else is asked.
    """
    mean_s, saturated, scale, variance = drawn
    cells, shape = sorted(cells_of(load).items()), (fit.draws, labels.size)
    t, z = np.empty((2, *shape))
    for i in range(labels.size):
        at = {name: float(values[i]) for name, values in cells}
        rng = generator(seed, f"runs of {server} at {at}")
        t[:, i], z[:, i] = rng.standard_t(noise.NU, len(t)), rng.standard_normal(len(t))
    shown = noise.draw_runs(mean_s, noise.observed_scale(scale, variance, requests), t)
    with np.errstate(invalid="ignore"):
        request = noise.draw_requests(noise.draw_runs(mean_s, scale, t), variance, z)
    values = {
        "mean_s": (mean_s, {"units": "s"}),
        "run_s": (np.where(saturated, np.inf, shown), {"units": "s", "requests": requests}),
        "request_s": (np.where(saturated, np.inf, request), {"units": "s"}),
        "saturated": (saturated, {}),
    }
    like = load.cells["prompt_tokens"].broadcast_like(load.cells).expand_dims(server=[server])
    dims, each = (*answer.SAMPLE, *like.dims), (*fit.shape, *like.shape)
    parts: dict[str, Any] = {
        name: (dims, np.broadcast_to(value, shape).reshape(each), attrs)
        for name, (value, attrs) in values.items()
    }
    parts["support"] = (like.dims, labels.astype(object).reshape(like.shape))
    return xr.Dataset(parts, like.coords)


def measured_runs(fit: Posterior, arm: Arm, metric: str) -> pd.DataFrame:
    """Runs of a server at the lengths asked about."""
    runs = fit.runs.rename(columns={f"{metric}_mean_s": "mean_s"})
    own = runs["server"].isin(fit.servers["server"][arm.resolved.measured])
    for name in LENGTHS:
        own &= runs[name].isin(arm.cells[name])
    return runs[own][[*MEASURED]].assign(server=str(arm.resolved.server))


def latency(
    fit: Posterior,
    load: Load,
    servers: Server | Sequence[Server],
    *,
    metric: str = "e2e",
    requests: int | None = None,
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
    requests : int, optional
        Of one run, whose mean misses the long-run mean the more the fewer they are; by default the
        median of the fitted runs.
    extrapolate, seed
        See :class:`bayes_sd.Fit`.

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
    one_of("metric", metric, noise.METRICS)
    requests = fit.run_requests if requests is None else requests
    whole("requests", requests, 1)
    each = tuple(listed(servers))
    arms = [arm_of(fit, server, load, seed, extrapolate) for server in each]
    if metric == "tpot" and (arms[0].cells["output_tokens"] <= 1).any():
        raise InputError("Time per output token needs answers of more than one token.")
    parts, measured = [], []
    for arm in arms:
        said, inputs = arm.outcome()
        saturated = said.utilization >= 1
        mean = np.where(saturated, np.inf, said.mean_s(metric, inputs["output_tokens"]))
        drawn = (mean, saturated, *scatter(fit, said, inputs, metric, requests))
        # A structure is a what-if of the same server, which has its random numbers.
        server, here = arm.resolved.server, str(replace(arm.resolved.server, structure=None))
        part = observable(fit, load, here, drawn, arm.support(said), requests, seed)
        parts.append(part.assign_coords(server=[str(server)]))
        measured.append(measured_runs(fit, arm, metric))
    points = pd.concat(measured, ignore_index=True)
    return Latency(xr.concat(parts, dim="server"), metric, points, each)
