"""The best draft length for every batch size, as the table vLLM takes, and what it will do."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.latency import Arm, Latency, arm_of, measured_runs, observable, scatter
from bayes_sd.answers.servers import Server, draft_lengths, name_of
from bayes_sd.errors import EvidenceError, InputError, require, whole
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.law import Outcome
from bayes_sd.physics.noise import explained, request_quantile_s, run_scale, share_within, spread
from bayes_sd.physics.queue import mean_in_flight, occupancy
from bayes_sd.runs.load import Load
from bayes_sd.runs.vllm import speculative_config

DRAWS = 2000  # posterior draws used: the Monte Carlo error of a probability is then about 1%
BATCH_MAX = 1024
HOPELESS = 0.999  # chance of missing an SLO even alone from which no schedule is given
STARTED_ANEW = "scheduled server"  # its own effect is one draw, whatever it drafts
REACHED = 0.01  # probability of a batch size at a rate from which its support matters


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(answer.Answer):
    """Draft tokens by batch size, and the latency of a server that follows them.

    Parameters
    ----------
    rows : pandas.DataFrame
        The table: ``lo, hi`` (batch sizes, both included), ``k``, ``prob_best`` (chance that no
        other candidate is better, mean over the row), ``regret_ms`` (expected latency lost to the
        best candidate had it been known; for an SLO ``regret_prob``, the probability lost),
        ``prob_faster_than_plain_lo`` and ``_hi`` (than a server without a drafter, which an
        idle one slows, at both ends; NaN where none was measured), ``support``.
    latency : Latency
        At the loads asked about; its draws are those of the answer.
    drafter, candidates
        The drafter's name, and the draft lengths that were compared.
    method, model : str
        Of vLLM's ``--speculative-config``: as recorded with the runs; "" where unknown.
    losses : numpy.ndarray
        Expected loss, seconds or the chance to miss the SLO, by candidate and batch size from 1.
    beyond_graphs : int
        First batch size whose passes have no captured CUDA graph, 0 if all have one.
    """

    rows: pd.DataFrame
    latency: Latency
    drafter: str
    candidates: tuple[int, ...]
    losses: np.ndarray
    method: str = ""
    model: str = ""
    beyond_graphs: int = 0

    @property
    def draws(self) -> xr.Dataset:  # type: ignore[override]
        """Latency under the schedule, as in :class:`Latency`."""
        return self.latency.draws

    def __str__(self) -> str:
        parts = [f"k = {k} for {lo}" + f" to {hi}" * (hi > lo) for lo, hi, k in self.to_vllm()]
        top, label = self.rows["hi"].iloc[-1], answer.farthest(self.rows["support"])
        plain = f"Serve plain, with no drafter loaded: that is faster for 1 to {top}. "
        said = f"Draft tokens with {self.drafter} by requests in flight: {'; '.join(parts)}"
        past = f" From {self.beyond_graphs} on passes lie beyond the captured graphs."
        past *= self.beyond_graphs > 0
        if not self.pays:
            said = plain + said
        elif at := self._plain_faster():
            past += f" At {', '.join(at)} a server with no drafter loaded is faster."
        return f"{said} ({label}); beyond {top} vLLM keeps the last.{past}"

    @property
    def pays(self) -> bool:
        """Whether it drafts at some batch size, and a plain server is not surely faster at all."""
        slower = self.rows.filter(like="prob_faster_than_plain") <= 1 - answer.SURE
        return bool((self.rows["k"] > 0).any() and not slower.all(axis=None))

    def _plain_faster(self) -> list[str]:
        """Batch sizes at the ends of rows at which a plain server is surely faster: "11 to 15"."""
        said = []
        for row in self.rows.to_dict("records"):
            prob = {row[end]: row[f"prob_faster_than_plain_{end}"] for end in ("lo", "hi")}
            said.append(" to ".join(str(n) for n, p in prob.items() if p <= 1 - answer.SURE))
        return [ends for ends in said if ends]

    def to_vllm(self) -> list[list[int]]:
        """``num_speculative_tokens_per_batch_size``: ``[[lo, hi, k], ...]``."""
        return self.rows[["lo", "hi", "k"]].to_numpy().tolist()

    def speculative_config(self, **keys: Any) -> dict[str, Any]:
        """The object of ``--speculative-config``.

        `keys` are ``method``, ``model`` or any other key of vLLM's, in place of what the runs
        recorded; a model that neither says is an obvious placeholder. One draft length for all
        batch sizes needs no table, which would cost vLLM its full CUDA graphs. Raises
        EvidenceError if no batch size drafts: then a plain server is the answer.
        """
        top, rows = int(self.rows["k"].max()), self.to_vllm()
        if top == 0:
            raise EvidenceError(
                "No batch size is worth drafting for: serve without a speculative config."
            )
        given = {name: value for name, value in keys.items() if value}
        method = given.pop("method", self.method)
        model = given.pop("model", self.model)
        table = {"num_speculative_tokens_per_batch_size": rows} if len(rows) > 1 else {}
        return speculative_config(self.drafter, method, model, top) | table | given

    def command_line(self, **keys: Any) -> str:
        """The option to paste behind ``vllm serve``; arguments as of `speculative_config`."""
        return f"--speculative-config '{json.dumps(self.speculative_config(**keys))}'"

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """Draft length against requests in flight."""
        return draw_schedules(ax, {"_": self}, f"with {self.drafter}")


def draw_schedules(
    ax: "answer.Axes | None", schedules: Mapping[str, Schedule], title: str = ""
) -> "answer.Axes":
    """Draft length by batch size as steps, of each schedule by its name."""
    ax = answer.axes_of(ax)
    for number, (name, one) in enumerate(schedules.items(), start=1):
        edges, ks = [*one.rows["lo"], one.rows["hi"].iloc[-1] + 1], one.rows["k"].to_numpy(float)
        # Apart by a hair, so that equal tables do not hide each other.
        ks = np.append(ks, ks[-1]) + 0.04 * (number - 1)
        ax.step(edges, ks, where="post", label=name, **answer.line_style(number))
        ax.set_yticks(one.candidates)
    return answer.finish(ax, answer.UNITS["concurrency"], "draft tokens per cycle", title=title)


def schedule(
    fit: Posterior,
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

    At each batch size the latency beside ``batch - 1`` others decides. The smallest `k` that the
    best one does not beat with probability `confidence` is chosen, so ties and weak evidence draft
    less. The latency of a server that follows it is given at the load.

    Parameters
    ----------
    load : Load
        One pair of lengths; rates or concurrencies at which the schedule's latency is wanted.
    server : Server
        With a drafter; its own draft length does not matter.
    k : sequence of int
        Candidates, at least two; 0 is the server with its drafter idle.
    max_batch : int, optional
        Largest batch size (vLLM's ``--max-num-seqs``); by default the most requests in flight that
        runs of this verifier had, or the highest concurrency of the load.
    loss : str
        What is minimised: "mean" latency, or a percentile of single requests as "p95".
    slo_s : float, optional
        Instead of `loss`: the chance that a request takes longer, seconds.
    confidence : float
        In [0.5, 1).
    extrapolate, seed
        See :class:`bayes_sd.Fit`.

    Raises
    ------
    InputError
        If an argument is out of range.
    EvidenceError
        If a `k` is outside those measured, or no draft length keeps the SLO even alone.
    """
    ks = sorted(draft_lengths(k))
    top = _largest_batch(fit, server, load) if max_batch is None else max_batch
    require("k", ks, len(ks) > 1, "at least two draft lengths to choose from")
    whole("max_batch", top, 1, BATCH_MAX)
    require("confidence", confidence, 0.5 <= confidence < 1, "in [0.5, 1)")
    known = loss == "mean" or str(loss) in {f"p{n}" for n in range(1, 100)}
    require("loss", loss, known, "'mean', or a percentile as 'p95'")
    if slo_s is not None:
        answer.positive("slo_s", slo_s)
        require("loss", loss, loss == "mean", "left out beside slo_s: give one of the two")
    if server.drafter is None:
        raise InputError("A schedule is for a server with a drafter: give <<drafter>>.")
    prompt, output = load.lengths
    batches = Load(concurrency=list(range(1, top + 1)), prompt=prompt, output=output)
    thin = fit.thin(DRAWS)

    def arm_at(server: Server) -> Arm:
        """One server, whatever it drafts: the measured ones' own effects are not its own."""
        arm = arm_of(thin, server, batches, seed, extrapolate, STARTED_ANEW)
        return replace(arm, apart=load.axis == "rate_rps")

    # At k = 0 the drafter stays loaded: that is the server a schedule falls back to.
    arms = [arm_at(server.with_k(n)) for n in ks]
    said = [arm.outcome() for arm in arms]
    mean_s = np.stack([outcome.e2e_s for outcome, _ in said])  # (k, draws, batch sizes)
    losses = np.stack([_loss(thin, *one, loss, slo_s) for one in said])
    labels = np.stack([arm.support(outcome) for arm, (outcome, _) in zip(arms, said, strict=True)])
    if slo_s is not None and losses[:, :, 0].mean(axis=1).min() > HOPELESS:
        alone_s = np.median(mean_s[:, :, 0], axis=1).min()
        raise EvidenceError(
            f"slo_s = {slo_s:g}: no request can be expected to be served within it at any load; "
            f"alone and at the best draft length one takes about {alone_s:.3g} s."
        )
    chosen = _choose(losses, confidence)
    plain = np.full_like(losses[0], np.nan)
    with suppress(EvidenceError):  # where none was measured
        bare = replace(server, drafter=None, k=0, acceptance=None)
        plain = _loss(thin, *arm_at(bare).outcome(), loss, slo_s)
    pick = np.take_along_axis(losses, chosen[None, None, :], axis=0)[0]
    best, at = losses.min(axis=0), np.arange(top)
    batch, drafted, reach = at + 1, np.array(ks)[chosen], labels[chosen, at]
    lost, unit = ("regret_ms", 1e3) if slo_s is None else ("regret_prob", 1.0)
    faster = np.where(np.isnan(plain), np.nan, pick < plain).mean(axis=0)
    cells: dict[str, tuple[np.ndarray, Any]] = {  # and what a row has of its batch sizes
        "lo": (batch, "min"),
        "hi": (batch, "max"),
        "k": (drafted, "min"),
        "prob_best": ((pick <= best).mean(axis=0), "mean"),
        lost: (unit * (pick - best).mean(axis=0), "mean"),
        "prob_faster_than_plain_lo": (faster, "first"),
        "prob_faster_than_plain_hi": (faster, "last"),
        **({} if slo_s is None else {"prob_within_slo": (1 - pick.mean(axis=0), "min")}),
        "support": (reach, answer.farthest),
    }
    table = pd.DataFrame({name: values for name, (values, _) in cells.items()})
    neighbours = table.groupby((table["k"] != table["k"].shift()).cumsum())
    rows = neighbours.agg({name: how for name, (_, how) in cells.items()}).reset_index(drop=True)
    told = [np.broadcast_to(explained("e2e", *one), mean_s[0].shape) for one in said]
    along = mean_s[chosen, :, at].T, np.stack(told)[chosen, :, at].T
    followed = _followed(load, arms[0], *along, reach, seed)
    captured = np.array([arm.resolved.sizes["captured"] for arm in arms])[chosen]
    past = batch * (drafted + 1) > captured
    beyond = int(past.argmax()) + 1 if past.any() else 0
    facts = name_of(server.drafter), tuple(ks), losses.mean(axis=1), *_recorded(fit, server)
    return Schedule(rows, followed, *facts, beyond)


def _largest_batch(fit: Posterior, server: Server, load: Load) -> int:
    """The largest batch size that was measured, or that is asked about."""
    own = fit.runs[fit.runs["verifier"] == server.verifier]
    most = float((own if len(own) else fit.runs)["in_flight"].max())
    if load.axis == "concurrency":
        most = max(most, float(load.cells["concurrency"].max()))
    return min(math.ceil(most), BATCH_MAX)


def _loss(fit: Posterior, said: Outcome, inputs: Any, loss: str, slo_s: float | None) -> np.ndarray:
    """Loss of every draw: mean latency, a percentile of single requests, or P(over the SLO)."""
    if slo_s is None and loss == "mean":
        return np.asarray(said.e2e_s)
    variance = scatter(fit, said, inputs)[1]
    if slo_s is not None:
        return 1 - share_within(slo_s, said.e2e_s, variance)
    return np.asarray(request_quantile_s(said.e2e_s, variance, int(loss[1:]) / 100))


def _choose(losses: np.ndarray, confidence: float) -> np.ndarray:
    """Index of the smallest k that the best one does not beat with `confidence`, by batch size."""
    best = losses.mean(axis=1).argmin(axis=0)
    beaten = np.take_along_axis(losses, best[None, None, :], axis=0) < losses
    return np.asarray((beaten.mean(axis=1) < confidence).argmax(axis=0))


def _recorded(fit: Posterior, server: Server) -> tuple[str, str]:
    """How vLLM was told to draft in the runs of this drafter, where they agree."""
    runs = fit.runs[fit.runs["drafter"] == server.drafter]
    own = runs[runs["verifier"] == server.verifier]
    own = own if len(own) else runs
    said = [{*own.get(name, [])} - {""} for name in ("drafter_method", "drafter_path")]
    method, path = (str(known.pop()) if len(known) == 1 else "" for known in said)
    return method, path


def _followed(
    load: Load, arm: Arm, mean_s: np.ndarray, lengths: np.ndarray, labels: np.ndarray, seed: int
) -> Latency:
    """Latency of a server whose requests in flight decide its draft length.

    At a rate requests come and go at random, and the draft length with their number, so latency is
    Little's over the distribution of the requests in flight, see
    :func:`bayes_sd.physics.queue.occupancy`. `mean_s` and `lengths` (the variance of log latency
    that accepted lengths explain) are by batch size.
    """
    fit, values = arm.fit, np.ravel(load.cells[load.axis].values).astype(float)
    top = mean_s.shape[1]
    if load.axis == "concurrency":
        at = np.minimum(np.ceil(values).astype(int), top) - 1
        mean, explained_at = mean_s[:, at], lengths[:, at]
        growth = np.maximum(1 - mean_s[:, :1] / mean, 0.0)
        crowding = growth * np.maximum(mean_s[:, 1:2] / mean_s[:, :1] - 1, 0.0) if top > 1 else 0.0
        stuck, reach = np.zeros(mean.shape, bool), labels[at]
    else:
        if (values <= 0).any():
            raise InputError("A schedule is asked about at rates above 0.")
        by_batch = mean_s[:, None, :]
        p = occupancy(by_batch, values)
        with np.errstate(invalid="ignore"):
            mean = mean_in_flight(p, by_batch, values) / values
        busy = p[..., 1:]
        # Requests see the server at the batch sizes at which they spend their time.
        seen = busy * np.arange(1.0, top + 1)
        seen = seen / seen.sum(axis=-1, keepdims=True)
        typical = (seen * by_batch).sum(axis=-1)
        crowd = busy / np.maximum(busy.sum(axis=-1, keepdims=True), 1e-300)
        centre = (crowd * by_batch).sum(axis=-1, keepdims=True)
        crowding = (crowd * (by_batch - centre) ** 2).sum(axis=-1) / typical**2
        explained_at = (seen * lengths[:, None, :]).sum(axis=-1)
        stuck = ~np.isfinite(mean)
        growth = np.maximum(np.where(stuck, 0.0, mean / mean_s[:, :1] - 1), 0.0)
        reached = busy.mean(axis=0) > REACHED
        farthest = [answer.farthest(labels[r] if r.any() else labels[:1]) for r in reached]
        reach = np.array(farthest, object)
    variance, requests = spread("e2e", fit.noise, crowding, explained_at), fit.run_requests
    label = f"{name_of(arm.resolved.server.verifier)}, scheduled"
    drawn = (mean, stuck, run_scale("e2e", fit.noise, growth, requests), variance)
    data = observable(fit, load, label, drawn, reach, requests, seed)
    return Latency(data, "e2e", measured_runs(fit, arm, "e2e").iloc[:0], (arm.resolved.server,))
