"""Which form should one latency law for every machine have? Least squares, without PyMC.

    uv run benchmarks/one_law.py [TABLE ...]         # all tables by default, a minute of one core

A cycle of `B` requests checks `T = B (k + 1)` tokens in one pass and drafts k times:

    layer = o_layer + o_tp [dies > 1] + o_moe [has experts]
    pass  = layers layer + o_pass + o_token T + (read^p + compute^p)^(1/p) + B context K / (e_kv BW)
    read, compute = W(T) / (e_mem BW), 2 A T / (e_cmp F)
    cycle = pass + k (o_draft + W_draft / (e_mem BW) + 2 A_draft B / (e_cmp F))
            + 2 A prompt / (e_prefill F) for each request that joins meanwhile
    W(T)  = bytes (shared + experts (1 - (1 + t / uneven)^-uneven)),  t = -T log(1 - m / M)

BW and F are those of the data sheet (`runs/machines.toml`) times the number of accelerators. A
fit minimizes relative errors (soft-L1 beyond 10%), with a wide prior on each logarithm that weighs
about one row. Sources that are not beside the checkout are skipped.
"""

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from one_law_data import SHEETS, every_row
from scipy.optimize import least_squares, nnls

SCALE = 0.1  # relative error of a usual row
# A median and the standard deviation of its logarithm; a fit also starts there.
PRIOR = {
    "e_mem": (0.8, 0.7), "e_cmp": (0.5, 1.0), "e_kv": (0.7, 1.0), "e_prefill": (0.5, 1.0),
    "o_layer": (30e-6, 1.5), "o_tp": (15e-6, 1.0), "o_moe": (10e-6, 1.5), "o_pass": (5e-4, 2.0),
    "o_seq": (1e-5, 2.0), "o_token": (5e-6, 2.0), "o_draft": (3e-4, 2.0), "o_spec": (3e-4, 2.0),
    "uneven": (1.0, 1.0), "alike": (0.9, 0.3), "power": (2.0, 1.0), "e_experts": (0.7, 0.7),
    "openmath": (150.0, 0.5), "swe_verified": (1500.0, 0.7),
}  # fmt: skip
TERMS = ("o_layer", "o_tp", "o_moe", "o_pass", "o_token", "o_draft", "e_kv", "e_prefill", "uneven")
UNPUBLISHED = ("openmath", "swe_verified")  # prompt tokens, of the rows that do not have them


@dataclass(frozen=True)
class Form:
    """One candidate: how bytes and arithmetic combine, and its coefficients."""

    power: float = 2.0  # 1 sums, infinity takes the larger, 0 is fitted
    tile: int = 1  # tokens whose arithmetic is paid together
    beside: bool = False  # arithmetic goes beside overheads of layers and of the pass, too
    on: tuple[str, ...] = TERMS

    def names(self) -> list[str]:
        """Coefficients that are fitted."""
        return ["e_mem", "e_cmp", *self.on, *["power"] * (not self.power), *UNPUBLISHED]

    def but(self, less: str = "", plus: str = "") -> "Form":
        """Without one coefficient, with another."""
        return replace(self, on=(*(n for n in self.on if n != less), *plus.split()))


@dataclass(frozen=True)
class Fitted:
    """Coefficients, and the standard deviation of the logarithm of each."""

    form: Form
    theta: dict[str, float]
    sd: dict[str, float]

    def error(self, rows: pd.DataFrame) -> pd.Series:
        """Predicted over measured, less one."""
        return pd.Series(cycle(self.theta, arrays(rows), self.form), rows.index) / rows["y"] - 1

    def known(self) -> list[str]:
        """Coefficients that the rows, not the prior, determined."""
        return [name for name, sd in self.sd.items() if sd < PRIOR[name][1] / 2]


def arrays(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns as arrays."""
    return {name: rows[name].to_numpy() for name in rows}


def cycle(theta: dict[str, float], r: dict[str, np.ndarray], form: Form) -> np.ndarray:
    """Seconds of a cycle."""
    o, mem, cmp = {n: theta.get(n, 0.0) for n in PRIOR}, theta["e_mem"], theta["e_cmp"]
    tokens = r["batch"] * (r["k"] + 1)
    touched = r["batch"] * (r["k"] + 1) ** theta.get("alike", 1.0)
    touches = -np.log(np.where(r["experts"] > 0, r["idle"], 0.5)) * touched
    uneven = theta.get("uneven", 1e6)
    phi = 1 - (1 + touches / uneven) ** -uneven
    read = (r["shared"] / mem + r["experts"] * phi / theta.get("e_experts", mem)) / r["bw"]
    paid = np.ceil(tokens / form.tile) * form.tile
    compute = 2 * r["active"] * paid / (cmp * r["flops"])
    layer = o["o_layer"] + o["o_tp"] * (r["dies"] > 1) + o["o_moe"] * (r["experts"] > 0)
    launch = r["layers"] * layer + o["o_pass"]
    read = read + form.beside * launch
    power, high = form.power or np.clip(theta["power"], 0.5, 50.0), np.maximum(read, compute)
    work = high * (1 + (np.minimum(read, compute) / high) ** power) ** (1 / power)
    lengths = np.where(r["workload"] == "openmath", theta["openmath"], theta["swe_verified"])
    prompt = np.where(np.isnan(r["prompt"]), lengths, r["prompt"])
    keys = r["batch"] * (prompt + r["output"] / 2) * r["kv"] / (theta.get("e_kv", mem) * r["bw"])
    prefill = prompt * 2 * r["active"] / (theta.get("e_prefill", cmp) * r["flops"])
    overhead = (not form.beside) * launch + o["o_seq"] * r["batch"] + o["o_token"] * tokens
    each = 1 / (mem * r["bw"]) + r["batch"] / (cmp * r["flops"])  # of a weight of the drafter
    drafted = r["k"] * (o["o_draft"] + 2 * r["drafter"] * each) + o["o_spec"] * (r["k"] > 0)
    free = 1 - np.minimum(r["rate"] * prefill, 0.9)  # of the time, beside prefills of others
    return (overhead + work + keys + drafted + r["joining"] * prefill) / free


def fit(rows: pd.DataFrame, form: Form, prior: dict | None = None) -> Fitted:
    """Coefficients of least relative error, under PRIOR and what `prior` says instead."""
    r, names = arrays(rows), form.names()
    median, spread = np.array([{**PRIOR, **(prior or {})}[name] for name in names]).T
    log_y = np.log(r["y"].astype(float))

    def residuals(x: np.ndarray) -> np.ndarray:
        theta = dict(zip(names, np.exp(np.clip(x, -40, 40)), strict=True))
        miss = (np.log(cycle(theta, r, form)) - log_y) / SCALE
        return np.concatenate([miss, (x - np.log(median)) / spread])

    best = least_squares(residuals, np.log(median), loss="soft_l1")
    sd = np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac)))
    return Fitted(form, dict(zip(names, np.exp(best.x).tolist(), strict=True)),
                  dict(zip(names, sd.tolist(), strict=True)))  # fmt: skip


def population(fits: Iterable[Fitted]) -> dict[str, tuple[float, float]]:
    """Median and log-sd (0.25 at least) of each coefficient that two machines or more determine."""
    logs: dict[str, list[float]] = {}
    for one in fits:
        for name in set(one.known()) - set(UNPUBLISHED):
            logs.setdefault(name, []).append(np.log(one.theta[name]))
    return {name: (float(np.exp(np.median(x))), max(float(np.std(x, ddof=1)), 0.25))
            for name, x in logs.items() if len(x) > 1}  # fmt: skip


def eight(rows: pd.DataFrame) -> np.ndarray:
    """Columns of the eight-coefficient law: coverage by independent tokens, one e_mem, sums."""
    r = arrays(rows)
    tokens = r["batch"] * (r["k"] + 1)
    read, layers = r["shared"] + r["experts"] * (1 - r["idle"] ** tokens), r["layers"]
    keys = r["batch"] * (300 + r["output"] / 2) * r["kv"]
    return np.stack([layers, layers * (r["dies"] > 1), read / r["bw"], keys / r["bw"], r["batch"],
                     2 * r["active"] * tokens / r["flops"], r["k"], 2 * r["k"] * r["drafter"]
                     / r["bw"]], axis=1)  # fmt: skip


def line(rows: pd.DataFrame) -> np.ndarray:
    """Columns of a + b B (k + 1) + k (c + d B)."""
    batch, k = rows[["batch", "k"]].to_numpy(float).T
    return np.stack([np.ones(len(rows)), batch * (k + 1), k, k * batch], axis=1)


def linear(columns, train: pd.DataFrame, test: pd.DataFrame) -> pd.Series:
    """Errors of non-negative least squares of relative errors on these columns."""
    units = columns(train) / train["y"].to_numpy()[:, None]
    scale = np.maximum(units.max(axis=0), 1e-300)
    theta = nnls(units / scale, np.ones(len(train)))[0] / scale
    return pd.Series(columns(test) @ theta, test.index) / test["y"] - 1


def percent(error: pd.Series | np.ndarray) -> float:
    """Median absolute error, %."""
    return round(100 * float(np.median(np.abs(error))), 1)


def decisions(rows: pd.DataFrame, error: pd.Series) -> tuple[float, float, int]:
    """Median error of SD over plain throughput, %; sign right where beyond 5%, %; such cells."""
    rows = rows.assign(predicted=rows["y"] * (1 + error))
    drafts, on = rows["k"] > 0, ["system", "workload", "batch"]
    both = rows[drafts].merge(rows[~drafts], on=on, suffixes=("", "_plain"))
    ratio = both["committed"] * both["y_plain"] / both["y"]
    said = both["committed"] * both["predicted_plain"] / both["predicted"]
    right = ((ratio > 1) == (said > 1))[(ratio - 1).abs() > 0.05]
    return percent(said / ratio - 1), round(100 * float(right.mean()), 1), len(right)


def without(rows: pd.DataFrame, column: str, predict) -> pd.Series:
    """Errors of each row, predicted from the rows with another value in `column`."""
    folds = [rows[column] == value for value in rows[column].unique()]
    return pd.concat([predict(rows[~held], rows[held]) for held in folds])


def candidates(rows: pd.DataFrame, forms: dict[str, Form]) -> pd.DataFrame:
    """Errors of each form: in sample, of GB200 systems left out, of machines left out, %."""
    parts = {str(machine): part for machine, part in rows.groupby("machine")}
    gb200, out = parts.get("GB200"), {}
    for name, form in forms.items():
        fits = {machine: fit(part, form) for machine, part in parts.items()}
        row: dict = {m: percent(one.error(parts[m])) for m, one in fits.items()}
        if gb200 is not None:
            held = without(gb200, "system", lambda a, b, form=form: fit(a, form).error(b))
            each = held.abs().groupby(gb200["system"]).median()
            row["systems left out"] = " ".join(f"{100 * x:.1f}" for x in each)
            row["sign"] = decisions(gb200, held)[1]
        row["machine left out"] = pd.Series(transfer(parts, form, fits), dtype=float).median()
        out[name] = row
    return pd.DataFrame(out).T


def transfer(parts: dict, form: Form, fits: dict, systems: int = 0, vendor: str = "") -> dict:
    """Median error of each accelerator from others (of one vendor), with so many of its systems."""
    out = {}
    ours = [m for m in parts if "CPU" not in m and SHEETS[m]["source"].startswith(vendor)]
    for machine in ours:
        part, errors = parts[machine], []
        prior = population(fits[m] for m in ours if m != machine)
        for seed in range(5 if systems else 1):
            chosen = np.random.default_rng(seed).permutation(np.sort(part["system"].unique()))
            own = part["system"].isin(chosen[:systems])
            errors.append(fit(part[own], form, prior).error(part[~own]).abs().median())
        out[machine] = percent(np.array(errors))
    return out


def host_miss(x, unit, graph, y, least: bool) -> np.ndarray:
    """Log of predicted over measured of passes that the host launches kernel by kernel."""
    host = unit @ np.exp(x)
    return np.log((np.maximum(graph, host) if least else graph + host) / y)


def beyond(inside: pd.DataFrame, past: pd.DataFrame) -> pd.DataFrame:
    """What passes without captured graphs cost: added to the law, or the least that they take."""
    graph = cycle(fit(inside, LAW).theta, arrays(past), LAW)
    y, layers, system = past["y"].to_numpy(), past["layers"].to_numpy(float), past["system"]
    moe, out = past["experts"].to_numpy() > 0, {}
    units = {"a pass": [np.ones(len(y))], "a layer": [layers],
             "a layer, dense or MoE": [layers * ~moe, layers * moe]}  # fmt: skip
    for (name, columns), least in itertools.product(units.items(), (False, True)):
        unit, left = np.stack(columns, axis=1), np.empty(len(y))
        begin = np.log(0.05 / unit.max(axis=0))
        x = least_squares(host_miss, begin, args=(unit, graph, y, least)).x
        for test in [(system == one).to_numpy() for one in system.unique()]:
            rest, seen = (unit[~test], graph[~test], y[~test], least), unit[~test].any(axis=0)
            other = np.where(seen, least_squares(host_miss, begin, args=rest).x, np.nan)
            left[test] = np.expm1(host_miss(other, unit[test], graph[test], y[test], least))
        left = left[np.isfinite(left)]  # the only dense system has no other of its kind
        out[f"{name}, {'at least' if least else 'added'}"] = {
            "in sample": percent(np.expm1(host_miss(x, unit, graph, y, least))),
            "left out": percent(left), "within 20%": f"{(abs(left) <= 0.2).sum()} of {len(left)}",
            "us": " ".join(f"{1e6 * value:.0f}" for value in np.exp(x)),
        }  # fmt: skip
    out["as captured"] = {"in sample": percent(graph / y - 1)}
    return pd.DataFrame(out).T


LAW = Form()
QUESTIONS = {
    "combine": {
        "p = 2": LAW, "sum": replace(LAW, power=1.0), "maximum": replace(LAW, power=np.inf),
        "p = 4": replace(LAW, power=4.0), "p fitted": replace(LAW, power=0.0),
        "overheads beside computing": replace(LAW, beside=True),
        **{f"p = {p:.0f}, tiles of {n}": replace(LAW, power=p, tile=n) for p in (1.0, 2.0)
           for n in (64, 128)},
    },
    "terms": {"law": LAW, **{f"no {name}": LAW.but(name) for name in TERMS},
              **{f"and {n}": LAW.but(plus=n) for n in ("o_seq", "o_spec", "e_experts", "alike")},
              "alike, not uneven": LAW.but("uneven", "alike")},
}  # fmt: skip


def systems_left_out(gb200: pd.DataFrame) -> pd.DataFrame:
    """Each GB200 system from the others, beside two linear laws (the regression in sample)."""
    ways = {"law": lambda a, b: fit(a, LAW).error(b), "eight": lambda a, b: linear(eight, a, b)}
    groups, out = [*gb200.groupby("system"), ("all", gb200)], {}
    for name, way in ways.items():
        inside, held = way(gb200, gb200), without(gb200, "system", way)
        for system, part in groups:
            each = percent(inside[part.index]), percent(held[part.index])
            out[name, system] = (*each, *decisions(part, held[part.index]))
    for system, part in groups[:-1]:
        out["regression", system] = (percent(linear(line, part, part)), *[np.nan] * 4)
    names = ["in sample", "left out", "ratio", "sign", "clear cells"]
    return pd.DataFrame(out, names).T


def main(tables: list[str]) -> None:
    """Print the tables."""

    def show(name: str, table: Callable[[], pd.DataFrame]) -> None:
        if not tables or name in tables:
            print(f"\n{name}\n{table().to_string(na_rep='')}")

    everything = every_row()
    rows, past = everything[~everything["past"]], everything[everything["past"]]
    for name, forms in QUESTIONS.items():
        show(name, lambda forms=forms: candidates(rows, forms))
    parts = {str(machine): part for machine, part in rows.groupby("machine")}
    fits = {machine: fit(part, LAW) for machine, part in parts.items()}
    if len(past):
        show("systems", lambda: systems_left_out(parts["GB200"]))
        show("beyond", lambda: beyond(parts["GB200"], past))
    errors = {"in sample": {m: percent(one.error(parts[m])) for m, one in fits.items()}}
    for name, how in {"0": (0,), "2": (2,), "0, NVIDIA": (0, "NVIDIA")}.items():
        errors[f"systems: {name}"] = transfer(parts, LAW, fits, *how)
    show("machines", lambda: pd.DataFrame(errors))
    known = {m: {n: one.theta[n] for n in one.known()} for m, one in fits.items()}
    people = population(one for m, one in fits.items() if "CPU" not in m)
    people = pd.DataFrame.from_dict(people, orient="index", columns=["median", "log_sd"])
    table = pd.DataFrame(known).reindex(LAW.names()).join(people)
    show("coefficients", lambda: table.T.map("{:.3g}".format).replace("nan", ""))


if __name__ == "__main__":
    main(sys.argv[1:])
