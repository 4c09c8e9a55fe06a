"""Break the latency law's assumptions on purpose, and see where its answers stay right.

Every assumption is broken alone, on two simulated servers at three loads, for plain decoding and
for speculative decoding (SD). The law is given the servers' exact costs: what is left is its own
error, not that of a fit. ``python -m bayes_sd.validate.stress`` prints all tables.
"""

from dataclasses import dataclass, replace
from math import ceil, exp, inf, isfinite, isinf, log, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from bayes_sd.physics import (
    Cycle,
    combine,
    coverage,
    cycles,
    in_flight_with_experts,
    tokens_in_pass,
)
from bayes_sd.validate.assumptions import (
    ASSUMPTIONS,
    BASE,
    BURSTS,
    BURSTS_MIXED,
    CONSTANT,
    CONSTANT_MIXED,
    LONG,
    LONG_MIXED,
    MIXED,
    OUTPUT,
    SERVERS,
    TAIL,
    Assumption,
)
from bayes_sd.validate.result import CheckResult
from bayes_sd.validate.simulator import SimulatedServer, dispersion, lengths, simulate

ARMS = {"plain": (0, 0.0), "sd": (3, 0.7)}  # draft tokens, acceptance
SHARES = (0.2, 0.5, 0.8)  # of the capacity of the arm that has less
ERROR, TIE = 0.10, 0.05
BOUND = "<= 0.10, and the faster arm right wherever the arms differ by more than 5%"
COUNTED = (0.1, 0.9)  # of a run: after it has settled, before arrivals end
FEWEST, MOST_RUNS = 8, 40  # requests of a short run, and short runs of a replicate


def stress(seed: int = 1, requests: int = 4000, replicates: int = 6) -> list[CheckResult]:
    """Break each assumption alone, and answer two questions that this raises.

    Parameters
    ----------
    seed : int
    requests : int
        Of a run at the highest load; fewer at lower ones.
    replicates : int
        Runs of a point; at least 2.

    Returns
    -------
    list of CheckResult
        One for each of `ASSUMPTIONS`, then ``arrivals_correction`` and ``length_insensitivity``.
    """
    pairs = (BURSTS_MIXED, CONSTANT_MIXED, LONG_MIXED)
    tables = {a.name: measure(a, seed, requests, replicates) for a in (*ASSUMPTIONS, *pairs)}
    results = [judge(a, tables[a.name]) for a in ASSUMPTIONS]
    return [*results, arrivals_correction(tables), length_insensitivity(tables)]


def measure(
    assumption: Assumption, seed: int = 1, requests: int = 4000, replicates: int = 6
) -> pd.DataFrame:
    """Simulate both arms on both servers at every load, and ask the law.

    Returns
    -------
    pandas.DataFrame
        One row a server, load and arm. Seconds: ``simulated_s`` with its 95% interval over
        replicates ``low_s .. high_s``, ``law_s``, 95th percentiles of requests ``p95_s`` and, of a
        log-normal with the law's spread, ``law_p95_s``. Shares: ``error`` of the law,
        ``error_counted`` with the cycles counted in the runs, ``sd_change`` and ``law_sd_change``
        of the mean by SD, ``p_wrong`` that the arm which the law names is the slower one,
        ``slowdown_short`` and ``slowdown_long`` of the quarters of requests with least and most
        work, against each alone on the server.
    """
    rows = []
    for name, plain in SERVERS.items():
        server = replace(plain, experts_s=assumption.experts_s, idle=1 - 2 / 16)
        capacity = 1 / max(_Place(assumption, server, 0.0).cycle(arm).c2 for arm in ARMS)
        server = _narrowed(_Place(assumption, server, SHARES[-1] * capacity))
        for share in SHARES:
            place = _Place(assumption, server, share * capacity)
            at = {"server": name, "share": share, "rate_rps": place.rate_rps}
            effort = (seed, ceil(requests * share / SHARES[-1]), replicates)
            rows += [at | row for row in _point(place, effort)]
    return pd.DataFrame(rows)


def judge(assumption: Assumption, table: pd.DataFrame) -> CheckResult:
    """Whether the law stays right in a table of :func:`measure`, and where."""
    wrong = _wrong_choices(table)
    worst = float(table["error"].abs().max())
    return CheckResult(
        name=assumption.name,
        passed=worst <= ERROR and wrong.empty,
        value=worst,
        bound=BOUND,
        sentence=f"{assumption.words}: {_where_right(table)}; {_choices(wrong)}.",
        table=table,
    )


def arrivals_correction(tables: dict[str, pd.DataFrame]) -> CheckResult:
    r"""How many others a request meets, when arrivals are not Poisson.

    .. math:: L = \frac{C_1 + (v - 1)\, m\, C_2}{1 - x}, \qquad m = E[\min(g, g')] / E[g]

    Others in flight are ``B + (v - 1) m``, with `v` the variance over mean of the arrivals within
    one latency, which is the squared coefficient of variation of gaps where many arrive in it, and
    `m` the overlap of two stays that begin together, 1 for fixed outputs `g`.

    Parameters
    ----------
    tables : mapping
        Of :func:`measure`, by the assumptions' names; constant and bursty arrivals, with fixed and
        with mixed lengths.
    """
    cases = (CONSTANT, CONSTANT_MIXED, BURSTS, BURSTS_MIXED)
    rows = pd.DataFrame(_corrected(a, row) for a in cases for _, row in tables[a.name].iterrows())
    size = rows.filter(like="error").abs().mean()
    fixed = rows[rows["lengths"] == "fixed"].filter(like="error").abs().mean()
    value = float(size["error_counts_overlap"] / size["error"])
    return CheckResult(
        name="arrivals_correction",
        passed=value <= 0.5,
        value=value,
        bound="<= 0.5 of the mean error that the law has with B others",
        sentence=(
            f"Constant and bursty arrivals: mean absolute error {size['error']:.1%} with B others, "
            f"{size['error_gaps']:.1%} with B + c^2 - 1 (at fixed lengths {fixed['error']:.1%} and "
            f"{fixed['error_gaps']:.1%}), {size['error_gaps_overlap']:.1%} with c^2 - 1 times the "
            f"overlap of two stays, and {size['error_counts_overlap']:.1%} if c^2 is moreover the "
            "variance over mean of the arrivals within one latency."
        ),
        table=rows,
    )


def length_insensitivity(tables: dict[str, pd.DataFrame]) -> CheckResult:
    """Whether only mean lengths matter, as where every request shares every pass alike.

    Parameters
    ----------
    tables : mapping
        Of :func:`measure`, by the assumptions' names; fixed, mixed and heavy-tailed lengths, and
        long prompts, fixed and mixed.
    """
    cases = ((BASE, MIXED), (BASE, TAIL), (LONG, LONG_MIXED))
    rows = pd.concat(
        [
            _length_change(other.name, tables[fixed.name], tables[other.name])
            for fixed, other in cases
        ],
        ignore_index=True,
    )
    size = rows.set_index("case")["change"].abs().groupby("case").mean()
    beyond = (rows["change"].abs() > rows["change_95"]).groupby(rows["case"]).sum()
    ratio = (rows["slowdown_short"] / rows["slowdown_long"])[rows["case"] == MIXED.name]
    said = {c: f"{size[c]:.1%} ({beyond[c]} of 12 beyond their 95% interval)" for c in size.index}
    return CheckResult(
        name="length_insensitivity",
        passed=float(size[MIXED.name]) <= TIE,
        value=float(size[MIXED.name]),
        bound="<= 0.05 mean absolute change by mixed lengths with short prompts",
        sentence=(
            f"Against fixed lengths of the same mean, mixed ones change the mean latency by "
            f"{said[MIXED.name]}, heavy-tailed outputs by {said[TAIL.name]}, mixed long prompts by "
            f"{said[LONG_MIXED.name]}; requests with little work are slowed {ratio.min():.2f} to "
            f"{ratio.max():.2f} times as much as those with much, where equal shares of every "
            "pass would give 1."
        ),
        table=rows,
    )


def _length_change(case: str, fixed: pd.DataFrame, mixed: pd.DataFrame) -> pd.DataFrame:
    width = np.hypot(fixed["high_s"] - fixed["simulated_s"], mixed["high_s"] - mixed["simulated_s"])
    return pd.DataFrame(
        {
            "case": case,
            **mixed[["server", "share", "arm", "simulated_s"]],
            "change": mixed["simulated_s"] / fixed["simulated_s"] - 1,
            "change_95": width / fixed["simulated_s"],
            **mixed[["slowdown_short", "slowdown_long"]],
        }
    )


@dataclass(frozen=True)
class _Place:
    assumption: Assumption
    server: SimulatedServer
    rate_rps: float

    def cycle(self, arm: str) -> Cycle:
        k, alpha = ARMS[arm]
        return self.server.law(k, self.assumption.prompt, OUTPUT, alpha)

    def counted(self, arm: str, passes: float) -> Cycle:
        k = ARMS[arm][0]
        return combine(self.server.stages(k, self.assumption.prompt), k, passes)

    def law(self, arm: str, total: Cycle | None = None) -> tuple[float, float]:
        # Mean latency, s, and the variance that others give its logarithm: B C2 / L * C2 / C1.
        total = total or self.cycle(arm)
        room = 1 - self.rate_rps * total.c2
        if room <= 0:
            return inf, inf
        idle, k = self.server.idle, ARMS[arm][0]
        others = in_flight_with_experts(total, self.rate_rps, room, idle, log(idle), k)
        mean, added = others / self.rate_rps, others * total.c2
        return float(mean), float(added / mean * total.c2 / (mean - added))

    def in_flight(self, arm: str) -> float:
        return self.rate_rps * self.law(arm)[0]


def _narrowed(place: _Place) -> SimulatedServer:
    server, wanted = place.server, place.assumption
    flights = [place.in_flight(arm) for arm in ARMS]
    passes = [1 + cycles(OUTPUT, [alpha] * k, k) for k, alpha in ARMS.values()]
    arriving = max(b / n for b, n in zip(flights, passes, strict=True)) * wanted.prompt
    if isfinite(wanted.chunk_room):
        server = replace(server, chunk_tokens=ceil(wanted.chunk_room * arriving))
    if isfinite(wanted.sequence_room):
        server = replace(server, max_sequences=ceil(wanted.sequence_room * max(flights)))
    return server


def _point(place: _Place, effort: tuple[int, int, int]) -> list[dict[str, Any]]:
    # Both arms at one load, on the same arrivals and lengths.
    runs = {arm: _replicates(place, arm, effort) for arm in ARMS}
    change = np.log(runs["sd"]["mean_s"] / runs["plain"]["mean_s"])
    sd_slower = student.cdf(change.mean() / change.std() * sqrt(len(change)), len(change) - 1)
    law_change = place.law("sd")[0] / place.law("plain")[0] - 1
    both = {
        "sd_change": runs["sd"]["mean_s"].mean() / runs["plain"]["mean_s"].mean() - 1,
        "law_sd_change": law_change,
        "p_wrong": float(sd_slower if law_change < 0 else 1 - sd_slower),
    }
    return [{"arm": arm} | _arm(place, arm, runs[arm]) | both for arm in ARMS]


def _arm(place: _Place, arm: str, runs: pd.DataFrame) -> dict[str, float]:
    found, (law_s, others_variance) = runs.mean(), place.law(arm)
    half = student.ppf(0.975, len(runs) - 1) * runs["mean_s"].std() / sqrt(len(runs))
    counted_s = place.law(arm, place.counted(arm, found["cycles"]))[0]
    variance = found["own_variance"] + others_variance
    return {
        "simulated_s": found["mean_s"],
        "low_s": found["mean_s"] - half,
        "high_s": found["mean_s"] + half,
        "law_s": law_s,
        "error": law_s / found["mean_s"] - 1,
        "error_counted": counted_s / found["mean_s"] - 1,
        "p95_s": found["p95_s"],
        "law_p95_s": law_s * exp(ndtri(0.95) * sqrt(variance) - variance / 2),
        "slowdown_short": found["slowdown_short"],
        "slowdown_long": found["slowdown_long"],
    }


def _replicates(place: _Place, arm: str, effort: tuple[int, int, int]) -> pd.DataFrame:
    seed, n, replicates = effort
    started, runs = round(place.in_flight(arm)), 1
    if isfinite(place.assumption.latencies):
        busiest = max(place.in_flight(each) for each in ARMS)
        length = max(FEWEST, round(place.assumption.latencies * busiest))
        started, runs, n = 0, max(1, min(MOST_RUNS, n // length)), length
    rows = []
    for i in range(replicates):
        generators = [np.random.default_rng((seed, i, j)) for j in range(runs)]
        frames = [_serve(place, arm, started, n, rng) for rng in generators]
        rows.append(_summary(place.server, ARMS[arm][0], pd.concat(frames)))
    return pd.DataFrame(rows)


def _serve(place: _Place, arm: str, started: int, n: int, rng: np.random.Generator) -> pd.DataFrame:
    broken, (k, alpha) = place.assumption, ARMS[arm]
    arrivals = _arrivals(broken, n, rng) * n / place.rate_rps
    prompt = lengths(broken.prompt, broken.prompt_cv, 0.0, n, rng)
    output = lengths(OUTPUT, broken.output_cv, broken.output_tail, n, rng)
    # Those that the law has in flight are there already, each partly done, so that a run need not
    # fill the server first; long requests are more likely to be met.
    left = rng.choice(output, started, p=output / output.sum()) * rng.random(started)
    accepted = np.full(started + n, alpha)
    if broken.acceptance_sd and k:
        weight = alpha * (1 - alpha) / broken.acceptance_sd**2 - 1
        accepted = rng.beta(alpha * weight, (1 - alpha) * weight, started + n)
    served = simulate(
        place.server,
        np.concatenate([np.zeros(started), arrivals]),
        np.concatenate([np.ones(started), prompt]),
        np.concatenate([np.ceil(left), output]),
        k,
        accepted,
        seed=int(rng.integers(2**31)),
    ).iloc[started:]
    settled = isinf(broken.latencies)
    return served.iloc[int(n * COUNTED[0]) : int(n * COUNTED[1])] if settled else served


def _arrivals(assumption: Assumption, n: int, rng: np.random.Generator) -> np.ndarray:
    # Over a run of length 1. As many in every run: vLLM's load generator stretches gaps likewise.
    constant = isinf(assumption.gap_shape)
    at = np.cumsum(np.ones(n) if constant else rng.gamma(assumption.gap_shape, 1.0, n))
    at /= at[-1]
    if (r := assumption.ramp) > 0:
        at = (np.sqrt((1 - r) ** 2 + 4 * r * at) - (1 - r)) / (2 * r)
    return at


def _summary(server: SimulatedServer, k: int, served: pd.DataFrame) -> dict[str, float]:
    latency = served["e2e_s"].to_numpy()
    own = combine(server.stages(k, served["prompt_tokens"]), k, served["cycles"])
    alone = (own.c1 + coverage(server.idle, tokens_in_pass(0, k)) * own.c1_experts).to_numpy()
    slowdown = (latency / alone)[np.argsort(alone, kind="stable")]
    quarter = max(1, len(slowdown) // 4)
    return {
        "mean_s": latency.mean(),
        "p95_s": np.quantile(latency, 0.95),
        "cycles": served["cycles"].mean(),
        "own_variance": np.log(alone).var(),
        "slowdown_short": slowdown[:quarter].mean(),
        "slowdown_long": slowdown[-quarter:].mean(),
    }


def _corrected(assumption: Assumption, row: pd.Series) -> dict[str, Any]:
    shape, rate = assumption.gap_shape, row["rate_rps"]
    law = _Place(BASE, SERVERS[row["server"]], rate).cycle(row["arm"])
    overlap = _overlap(assumption.output_cv)

    def latency(more: float) -> float:
        return (law.c1 + more * law.c2) / (1 - rate * law.c2)

    variance = 1.0
    for _ in range(4):  # what arrives within one latency depends on the latency
        variance = dispersion(shape, rate * latency((variance - 1) * overlap))
    more = {
        "error_gaps": 1 / shape - 1,
        "error_gaps_overlap": (1 / shape - 1) * overlap,
        "error_counts_overlap": (variance - 1) * overlap,
    }
    return {
        "arrivals": assumption.name.split("_")[0],
        "lengths": "mixed" if assumption.output_cv else "fixed",
        **row[["server", "share", "arm", "simulated_s"]],
        "in_flight": rate * row["simulated_s"],
        "counts_variance": variance,
        "error": row["error"],
        **{name: latency(others) / row["simulated_s"] - 1 for name, others in more.items()},
    }


def _overlap(cv: float) -> float:
    # E[min] / E of two log-normal lengths; 1/2 for exponential ones.
    return float(2 * ndtr(-sqrt(log(1 + cv**2) / 2)))


def _wrong_choices(table: pd.DataFrame) -> pd.DataFrame:
    loads = table[table["arm"] == "sd"]
    ratio = 1 + loads["sd_change"]
    differ = np.maximum(ratio, 1 / ratio) > 1 + TIE
    return loads[differ & (loads["sd_change"] * loads["law_sd_change"] < 0)]


def _choices(wrong: pd.DataFrame) -> str:
    if wrong.empty:
        return "the choice of arm stays right"
    places = [
        f"{row['server']} at {row['share']:.0%} (SD {row['sd_change']:+.0%}, by the law "
        f"{row['law_sd_change']:+.0%}, P(wrong) {row['p_wrong']:.2f})"
        for _, row in wrong.iterrows()
    ]
    return "the choice of arm is wrong: " + ", ".join(places)


def _where_right(table: pd.DataFrame) -> str:
    parts = []
    for name, rows in table.groupby("server", sort=False):
        right = rows["error"].abs().groupby(rows["share"]).max() <= ERROR
        loads = ", ".join(f"{share:.0%}" for share in right[right].index)
        where = "all loads" if right.all() else f"{loads} of capacity" if loads else "no load"
        worst = rows.sort_values("error", key=abs).iloc[-1]
        low = "low" if worst["error"] < 0 else "high"
        parts.append(
            f"{name}, mean within 10% at {where} (worst {abs(worst['error']):.0%} too {low}, "
            f"{worst['arm']} at {worst['share']:.0%})"
        )
    counted = table["error_counted"].abs().max()
    if counted < table["error"].abs().max() - 0.05:
        parts.append(f"{counted:.0%} at worst with the cycles counted in the runs")
    return "; ".join(parts)


def _markdown(table: pd.DataFrame) -> str:
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in r] for r in table.to_numpy()]
    head = [list(table.columns), ["---"] * len(table.columns)]
    return "\n".join("| " + " | ".join(row) + " |" for row in head + cells)


def main() -> None:
    """Print every sentence and table as Markdown."""
    for result in stress():
        print(f"## {result.name}: {'passed' if result.passed else 'failed'}\n")
        print(f"{result.sentence} Value {result.value:.3f}, bound: {result.bound}.\n")
        print(_markdown(result.table) + "\n")


if __name__ == "__main__":
    main()
