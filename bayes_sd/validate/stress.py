"""Break the latency law's assumptions on purpose, and see where its answers stay right.

Every assumption is broken alone, on two simulated servers at three loads, for plain decoding and
for speculative decoding (SD). The law is given the servers' exact costs: what is left is its own
error, not that of a fit. ``python -m bayes_sd.validate.stress`` prints all tables.
"""

from math import log, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

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
    SERVERS,
    TAIL,
    Assumption,
)
from bayes_sd.validate.broken import Place, measure
from bayes_sd.validate.result import CheckResult
from bayes_sd.validate.simulator import dispersion

ERROR, TIE = 0.10, 0.05
BOUND = "<= 0.10, and the faster arm right wherever the arms differ by more than 5%"


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


def _corrected(assumption: Assumption, row: pd.Series) -> dict[str, Any]:
    shape, rate = assumption.gap_shape, row["rate_rps"]
    law = Place(BASE, SERVERS[row["server"]], rate).cycle(row["arm"])
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
