"""Break the latency law's assumptions on a simulated server, and see where it stays right.

    uv run benchmarks/stress.py [--requests 4000] [--replicates 6] [--seed 1] [--tables FOLDER]

Prints one table: what is broken, the law's worst error of a mean latency (simulated, up to half and
at 80% of capacity), and whether it still names the faster of plain decoding and speculative
decoding (SD). Then two questions: what corrects for arrivals that are not Poisson, and whether more
than the mean lengths matters. `--tables` writes all figures as CSV. Half a minute on one core.
"""

import argparse
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr
from simulator import dispersion
from stress_cases import (
    ASSUMPTIONS,
    BASE,
    BURSTS,
    BURSTS_MIXED,
    CONSTANT,
    CONSTANT_MIXED,
    LONG,
    LONG_MIXED,
    MIXED,
    SERVERS,
    TAIL,
    Assumption,
    Place,
    measure,
)

from bayes_sd.checks.validate import CheckResult

ERROR, TIE = 0.10, 0.05
BOUND = "<= 0.10, and the faster arm right wherever the arms differ by more than 5%"
PAIRS = (BURSTS_MIXED, CONSTANT_MIXED, LONG_MIXED)


def stress(seed: int = 1, requests: int = 4000, replicates: int = 6) -> list[CheckResult]:
    """Break each assumption alone, then answer two questions that this raises.

    `requests` are those of a run at the highest load, fewer at lower ones; `replicates` at least 2.
    """
    tables = {a.name: measure(a, seed, requests, replicates) for a in (*ASSUMPTIONS, *PAIRS)}
    results = [judge(a, tables[a.name]) for a in ASSUMPTIONS]
    return [*results, arrivals_correction(tables), length_insensitivity(tables)]


def judge(assumption: Assumption, table: pd.DataFrame) -> CheckResult:
    """Whether the law stays right in a table of `measure`, and where."""
    wrong = _wrong_choices(table)
    worst = float(table["error"].abs().max())
    sentence = f"{assumption.words}: {_where_right(table)}; {_choices(wrong)}."
    passed = worst <= ERROR and wrong.empty
    return CheckResult(assumption.name, passed, worst, BOUND, sentence, table)


def _wrong_choices(table: pd.DataFrame) -> pd.DataFrame:
    """Loads at which the arms differ by more than a tie and the law names the slower one."""
    loads = table[table["arm"] == "sd"]
    ratio = 1 + loads["sd_change"]
    differ = np.maximum(ratio, 1 / ratio) > 1 + TIE
    return loads[differ & (loads["sd_change"] * loads["law_sd_change"] < 0)]


def _choices(wrong: pd.DataFrame) -> str:
    """Which choices are wrong, in words."""
    if wrong.empty:
        return "the choice of arm stays right"
    places = [
        f"{row['server']} at {row['share']:.0%} (SD {row['sd_change']:+.0%}, by the law "
        f"{row['law_sd_change']:+.0%}, P(wrong) {row['p_wrong']:.2f})"
        for _, row in wrong.iterrows()
    ]
    return "the choice of arm is wrong: " + ", ".join(places)


def _where_right(table: pd.DataFrame) -> str:
    """At which loads of each server the mean is right, in words."""
    parts = []
    for name, rows in table.groupby("server", sort=False):
        right = rows["error"].abs().groupby(rows["share"]).max() <= ERROR
        loads = ", ".join(f"{share:.0%}" for share in right[right].index)
        where = "all loads" if right.all() else f"{loads} of capacity" if loads else "no load"
        worst = _worst(rows)
        low = "low" if worst["error"] < 0 else "high"
        parts.append(
            f"{name}, mean within 10% at {where} (worst {abs(worst['error']):.0%} too {low}, "
            f"{worst['arm']} at {worst['share']:.0%})"
        )
    counted = table["error_counted"].abs().max()
    if counted < table["error"].abs().max() - 0.05:
        parts.append(f"{counted:.0%} at worst with the cycles counted in the runs")
    return "; ".join(parts)


def _worst(rows: pd.DataFrame) -> pd.Series:
    """The row with the largest error."""
    return rows.sort_values("error", key=abs).iloc[-1]


def arrivals_correction(tables: dict[str, pd.DataFrame]) -> CheckResult:
    r"""How many others a request meets, when arrivals are not Poisson.

    .. math:: L = \frac{C_1 + (v - 1)\, m\, C_2}{1 - x}, \qquad m = E[\min(g, g')] / E[g]

    Others in flight are ``B + (v - 1) m``, with `v` the variance over mean of the arrivals within
    one latency, which is the squared coefficient of variation of gaps where many arrive in it, and
    `m` the overlap of two stays that begin together, 1 for fixed outputs `g`.
    """
    cases = (CONSTANT, CONSTANT_MIXED, BURSTS, BURSTS_MIXED)
    rows = pd.DataFrame(_corrected(a, row) for a in cases for _, row in tables[a.name].iterrows())
    size = rows.filter(like="error").abs().mean()
    fixed = rows[rows["lengths"] == "fixed"].filter(like="error").abs().mean()
    value = float(size["error_counts_overlap"] / size["error"])
    sentence = (
        f"Constant and bursty arrivals: mean absolute error {size['error']:.1%} with B others, "
        f"{size['error_gaps']:.1%} with B + c^2 - 1 (at fixed lengths {fixed['error']:.1%} and "
        f"{fixed['error_gaps']:.1%}), {size['error_gaps_overlap']:.1%} with c^2 - 1 times the "
        f"overlap of two stays, and {size['error_counts_overlap']:.1%} if c^2 is moreover the "
        "variance over mean of the arrivals within one latency."
    )
    bound = "<= 0.5 of the mean error that the law has with B others"
    return CheckResult("arrivals_correction", value <= 0.5, value, bound, sentence, rows)


def _corrected(assumption: Assumption, row: pd.Series) -> dict[str, Any]:
    """The law's error at one load with three corrections for the arrivals."""
    shape, rate = assumption.gap_shape, row["rate_rps"]
    law = Place(BASE, SERVERS[row["server"]], rate).costs(row["arm"])
    # E[min] / E of two log-normal lengths; 1/2 for exponential ones.
    overlap = float(2 * ndtr(-sqrt(log(1 + assumption.output_cv**2) / 2)))

    def latency_s(more: float) -> float:
        return (law.c1_s + more * law.c2_s) / (1 - rate * law.c2_s)

    variance = 1.0
    for _ in range(4):  # what arrives within one latency depends on the latency
        variance = dispersion(shape, rate * latency_s((variance - 1) * overlap))
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
        **{name: latency_s(others) / row["simulated_s"] - 1 for name, others in more.items()},
    }


def length_insensitivity(tables: dict[str, pd.DataFrame]) -> CheckResult:
    """Whether only mean lengths matter, as where every request shares every pass alike."""
    cases = ((BASE, MIXED), (BASE, TAIL), (LONG, LONG_MIXED))
    changes = [_length_change(b.name, tables[a.name], tables[b.name]) for a, b in cases]
    rows = pd.concat(changes, ignore_index=True)
    size = rows["change"].abs().groupby(rows["case"]).mean()
    beyond = (rows["change"].abs() > rows["change_95"]).groupby(rows["case"]).sum()
    ratio = (rows["slowdown_short"] / rows["slowdown_long"])[rows["case"] == MIXED.name]
    said = {c: f"{size[c]:.1%} ({beyond[c]} of 12 beyond their 95% interval)" for c in size.index}
    sentence = (
        f"Against fixed lengths of the same mean, mixed ones change the mean latency by "
        f"{said[MIXED.name]}, heavy-tailed outputs by {said[TAIL.name]}, mixed long prompts by "
        f"{said[LONG_MIXED.name]}; requests with little work are slowed {ratio.min():.2f} to "
        f"{ratio.max():.2f} times as much as those with much, where equal shares of every "
        "pass would give 1."
    )
    value, bound = float(size[MIXED.name]), "<= 0.05 mean absolute change by mixed lengths"
    return CheckResult("length_insensitivity", value <= TIE, value, bound, sentence, rows)


def _length_change(case: str, fixed: pd.DataFrame, mixed: pd.DataFrame) -> pd.DataFrame:
    """Change of the mean latency by lengths that vary, with its 95% interval."""
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


def overview(results: list[CheckResult]) -> str:
    """Markdown table: what is broken, worst errors by load, and the choice of the faster arm."""
    words = {a.name: a.words for a in ASSUMPTIONS}
    lines = [
        "| broken | worst error to 50% | at 80% | faster of plain and SD |",
        "|---|---|---|---|",
    ]
    for result in results:
        if result.name not in words:
            continue
        table = result.table
        low, high = (
            f"{worst['error']:+.0%}, {worst['arm'].replace('sd', 'SD')} {worst['server']}"
            for worst in map(_worst, (table[table["share"] <= 0.5], table[table["share"] > 0.5]))
        )
        wrong = [f"{r['server']} at {r['share']:.0%}" for _, r in _wrong_choices(table).iterrows()]
        choice = f"**wrong**: {', '.join(wrong)}" if wrong else "right"
        lines.append(f"| {words[result.name]} | {low} | {high} | {choice} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and the sentences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--replicates", type=int, default=6)
    parser.add_argument("--tables", type=Path)
    args = parser.parse_args()
    results = stress(args.seed, args.requests, args.replicates)
    print(overview(results), "\n")
    for result in results:
        print(f"- {result}")
        if args.tables:
            args.tables.mkdir(parents=True, exist_ok=True)
            result.table.to_csv(args.tables / f"{result.name}.csv", index=False)


if __name__ == "__main__":
    main()
