"""Whether the figures of one run can all be true: parts, Little's law, counts, percentiles."""

import math

from bayes_sd.errors import InputError
from bayes_sd.runs.config import ROUNDING, Values

QUANTILES = {"p50_s": 0.5, "p90_s": 0.9, "p95_s": 0.95, "p99_s": 0.99}
# Means in milliseconds and lists in seconds round differently and may drop different requests;
# a wrong unit is off by far more.
UNIT_SLACK = 1.2
TINY = 1e-300  # instead of 0, by which nothing can be divided
ANY, ENDS = (0.0, math.inf), (0.0, UNIT_SLACK)


def doubts(row: Values, std_s: Values) -> set[str]:
    """Names, which `check` explains, of figures that hardly agree; InputError if they cannot.

    `row` is one of the run table, and `std_s` has the standard deviations by metric.
    """
    e2e, ttft, n = row["e2e_mean_s"], row["ttft_mean_s"], row["requests"]
    run_s, cap, rps = row["duration_s"], row["concurrency"], row["achieved_rps"]
    further = row["output_tokens"] - 1 if row["output_tokens"] > 1 else math.nan
    parts, stated = ttft + further * row["tpot_mean_s"], row["in_flight"]
    # Of the last ones in flight fewer and fewer are left.
    least = n / (n + cap) / 2 if row["loop"] == "closed" else 0.0
    arrived = (n + row["failed"] + row["incomplete"]) / max(row["rate_rps"] * run_s, TINY)
    # A queue that takes nearly all of the run to work off would show in the latency.
    lost = 0.2 if e2e < run_s * (1 - arrived) / 10 else 0.0
    mean, usual = f"mean e2e latency {e2e:g} s", (0, UNIT_SLACK + 3 / n**0.5)
    added = f"mean ttft and tpot add up to {parts:g} s, unlike {mean}"
    served = f"{mean} while {rps:g} finish a second is more than concurrency {cap:g}"
    offered = f"rate_rps {row['rate_rps']:g} for duration_s {run_s:g} is not {n} requests of {mean}"
    finished = f"achieved_rps {rps:g} for duration_s {run_s:g} is not {n} requests"
    relations = [  # what it is called, what is wrong, a ratio, where it is usual, where possible
        ("parts", f"mean ttft {ttft:g} s is longer than {mean}", ttft / e2e, ANY, (0, ROUNDING)),
        ("little", f"{mean} is longer than the run of {run_s:g} s", e2e / run_s, ANY, ENDS),
        # Means of ratios over requests of unequal length differ, but not by such a factor.
        ("parts", added, parts / e2e, (2 / 3, 1.5), (0.1, 10)),
        # Little's law: requests in flight are latency times requests finished a second.
        ("little", served, e2e / max(cap / rps, TINY), (least, UNIT_SLACK), (0, 2)),
        ("little", "", e2e / max(stated / rps, TINY), (0.5, 2), ANY),
        ("little", offered, arrived, usual, (lost, 5)),
        ("little", finished, rps * run_s / n, ANY, (0.5, 2)),
    ]
    for metric, sd in std_s.items():
        mean_s = row[f"{metric}_mean_s"]
        large = f"{metric}_std_s {sd:g} is too large for {n} requests of mean {mean_s:g} s"
        most = UNIT_SLACK * n**0.5  # one request took it all
        relations.append(("spread", large, sd / mean_s, (1e-3 if n > 1 else 0, 3), (0, most)))
        for name, q in QUANTILES.items():
            at, wide = row[f"{metric}_{name}"], sd / mean_s * UNIT_SLACK
            # No distribution has more above or below (Markov, Cantelli).
            high = 1 / (1 - q) if math.isnan(sd) else 1 + wide * (q / (1 - q)) ** 0.5
            possible = (1 - wide * ((1 - q) / q) ** 0.5) / UNIT_SLACK, high * UNIT_SLACK
            far = f"{metric}_{name} {at:g} is too far from the mean of {mean_s:g} s"
            relations.append(("spread", far, at / mean_s, (0.1, 10), possible))
    for _, problem, ratio, _, (low, high) in relations:  # NaN is neither
        if ratio < low or ratio > high:
            raise InputError(f"{problem}; check the units")
    return {name for name, _, ratio, (low, high), _ in relations if ratio < low or ratio > high}
