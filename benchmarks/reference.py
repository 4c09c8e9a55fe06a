"""The shipped reference posterior: what public runs of many machines say of one nobody measured.

    uv run benchmarks/reference.py [--cache FOLDER] [--out bayes_sd/reference.nc]

Each machine is fitted by itself, under the gate of every fit (10 minutes in all on two cores; kept
in the cache). Then a coefficient of the law is taken to vary between machines about a mean,
``log theta_m ~ StudentT(3, mu, s)``: what the runs of a machine tell of it, its posterior with the
prior taken out, is one observation of ``theta_m``. Machines without a data sheet tell nothing of
efficiencies and of overheads. The static batches are of engines of 2024, which take up to ten times
as long for a token in a pass: theirs is a mean of its own, ``mu + age``, and answers are those of
today's engines. Kept are draws of the population, of what the runs of a machine with such an
engine tell of its own coefficients, and the ranges that were measured, and no row of the tables.
"""

import argparse
import json
import warnings
from datetime import UTC, datetime
from pathlib import Path

import machines_data
import numpy as np
import pandas as pd
import xarray as xr
from common import converged, fitted

import bayes_sd as bsd
from bayes_sd.model.acceptance import acceptance_draws
from bayes_sd.model.file import TABLES
from bayes_sd.model.posterior import Posterior
from bayes_sd.model.priors import ALL, EFFECTS, NOISE, SAME_MACHINE_SD, correlated
from bayes_sd.physics.law import FULL
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

OUT = Path(__file__).parents[1] / "bayes_sd" / "reference.nc"
MOST = 300  # rows of a machine: more would say the same
TOLD = 0.9  # posterior sd over prior sd, above which a machine does not tell a coefficient
SCATTER = (0.5, 0.4)  # of machines, log: median and log-sd
AGE = 1.0  # log: sd of what engines of 2024 differ by
TAIL = 3.0  # degrees of freedom: one machine of eleven computes prompts ten times as slowly
SHARED = (  # beginnings of coefficients whose least scatter every machine is drawn anew with
    ("host_", *(f"overhead_{letter}" for letter in "pvde")), ("overhead_token",),
    ("read_weights",), ("read_keys",), ("prefill_token",),
)  # fmt: skip
HARDWARE = tuple(beginning for group in SHARED for beginning in group)
DRAWS = 1000
CAMPAIGNS = {"CPU": ["vllm-cpu"], "CPU eager": ["vllm-cpu-2"],
             "H200": ["vllm-h200", "vllm-h200-experts", "vllm-h200-rates"],
             "H200 at concurrencies": ["vllm-h200", "vllm-h200-experts"],
             "H100 of 2026": ["vllm-h100"]}  # fmt: skip
UNTRAINED = ("vllm-h200", "vllm-h100")  # routers of their mixtures of experts (traces/README.md)
STATIC = ("A100 40GB", "H100", "GH200 96GB", "MI250", "MI300X")
NOTE = (
    "Plain decoding rests on eight accelerators; drafting on GB200, H200, H100, an A100 and a CPU, "
    "of mixtures of experts on GB200, H200 and the CPU, and what a draft model of many layers "
    "costs on one server. Engines are taken to be of today. "
    "Max 1550 is left out, for it has no credible efficiencies (docs/one_law.md)."
)
RANGES = ("prompt_tokens", "output_tokens", "in_flight", "rate_rps", "concurrency", "draft_tokens",
          "utilization", "requests")  # fmt: skip
SOURCES = {
    "GB200": "Qwen3 with EAGLE-3 on GB200, public (dynamic-sd-gb200)",
    "CPU": "the shipped runs of traces/vllm-cpu",
    "CPU eager": "the shipped runs of traces/vllm-cpu-2, without compiled graphs",
    "A100 80GB": "Qwen3 with a one-layer drafter on an A100, public (qwen3-sd-a100)",
    "H200": "the shipped runs of traces/vllm-h200 (dense models), -experts and -rates",
    "H100 of 2026": "the shipped runs of the dense model of traces/vllm-h100",
    **dict.fromkeys(STATIC, "static batches of vLLM 2024, public (llm-inference-bench)"),
}  # fmt: skip


def runs_of(name: str) -> Runs:
    """Runs of a machine, at most `MOST` of them, spread over the table."""
    if name == "GB200":
        runs = machines_data.gb200()
    elif name == "A100 80GB":
        runs = machines_data.a100()
    elif name in CAMPAIGNS:
        runs = bsd.read([corpus(each) for each in CAMPAIGNS[name]])
        folders = runs.table["source"].astype(str).map(lambda path: Path(path).parent.name)
        real = ~folders.isin(UNTRAINED) | (runs.table["experts"] == 0)
        runs = Runs(runs.table[real].reset_index(drop=True), runs.set_aside)
    else:
        runs = machines_data.static(name)
    every = np.linspace(0, len(runs) - 1, min(MOST, len(runs))).astype(int)
    return Runs(runs.table.iloc[every].reset_index(drop=True), runs.set_aside)


def fit_of(name: str, cache: Path) -> bsd.Fit:
    """Fit of one machine, kept in the cache."""
    path = cache / f"{name.replace(' ', '-')}.nc"
    if not path.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Sweeps taken back to back: servers differ in one factor, models in none of their own.
            swept = {"server_effects": ("slowness",), "pooling": "complete"}
            how = swept if name in STATIC else {}
            fitted(bsd.LatencyModel(**how), runs_of(name), seed=1).save(path)
    return bsd.Fit.load(path)


def quantities(fit: Posterior) -> dict[str, np.ndarray]:
    """Draws on the scale of the normal population: logs, and effects of families as they are."""
    draws, data = {}, fit.posterior
    for group, dim in (("law", "law_term"), ("noise", "noise_term")):
        draws |= {n: np.log(data[group].sel({dim: n}).values.ravel()) for n in data[dim].values}
    # One sweep, back to back, whose servers differ by less than those started again.
    at_once = (fit.runs["machine"] == "A100 80GB").any()
    for prior in EFFECTS:
        other = prior.name == "scatter_machine" or (at_once and prior.name == "scatter_server")
        if prior.name in data and not other:
            dim = prior.dims[0]
            for n in data[dim].values:
                x = data[prior.name].sel({dim: n}).values.ravel()
                draws[f"{prior.name}[{n}]"] = x if prior.kind == "normal" else np.log(x)
    return draws


def told(fit: Posterior) -> dict[str, tuple[float, float]]:
    """Of each quantity that the runs tell: estimate and error, with the prior taken out."""
    by_name = {p["name"]: p for p in fit.spec["priors"]}
    known = bool(fit.servers["gb_per_s"].notna().all())
    out = {}
    for name, x in quantities(fit).items():
        prior = by_name[name.partition("[")[0]]
        machine = name.startswith(("pace", *HARDWARE))
        a = prior["a"] if prior["kind"] == "normal" else np.log(prior["a"])
        sd = x.std()
        if (machine and not known) or sd > TOLD * prior["b"]:
            continue
        precision = sd**-2 - prior["b"] ** -2
        out[name] = ((x.mean() / sd**2 - a / prior["b"] ** 2) / precision, precision**-0.5)
    return out


def population(fits: dict[str, Posterior], old: bool, seed: int = 1) -> tuple[xr.Dataset, dict]:
    """Draws of mean and scatter of every quantity over machines with engines of today, or 2024."""
    import pymc as pm

    from bayes_sd.model.sample import Sampling, sample

    estimates = {name: told(fit) for name, fit in fits.items()}
    names = list(dict.fromkeys(n for fit in fits.values() for n in quantities(fit)))
    names += [n for n in FULL.terms if n not in names]
    prior = {p.name: p for p in ALL}
    # Costs have their time; how models and servers scatter about them, and runs, has not.
    rows = [(names.index(n), machine in STATIC and n in FULL.terms, *x)
            for machine, each in estimates.items() for n, x in each.items()]  # fmt: skip
    which, aged, estimate, error = (np.array(column) for column in zip(*rows, strict=True))
    of = [prior[n.partition("[")[0]] for n in names]
    middle = np.array([p.a if p.kind == "normal" else np.log(p.a) for p in of])
    with pm.Model(coords={"quantity": names}) as model:
        mu = pm.Normal("mu", middle, np.array([p.b for p in of]), dims="quantity")
        scatter = pm.LogNormal("scatter", np.log(SCATTER[0]), SCATTER[1], dims="quantity")
        age = pm.Normal("age", 0.0, AGE, dims="quantity")
        # What the machines themselves have is integrated out.
        sd = (scatter[which] ** 2 + error**2) ** 0.5
        at = mu[which] + aged * age[which]
        pm.StudentT("estimate", TAIL, mu=at, sigma=sd, observed=estimate)
    tree, convergence, _ = sample(model, Sampling(), seed, False)
    if convergence.complaints:
        raise RuntimeError(" ".join(convergence.complaints))
    counts = np.bincount(which, minlength=len(names))
    print(pd.DataFrame({
        "machines": counts,
        "median": np.exp(tree["posterior"]["mu"].mean(("chain", "draw")).values),
        "scatter": tree["posterior"]["scatter"].median(("chain", "draw")).values,
        "of 2024": np.exp(tree["posterior"]["age"].mean(("chain", "draw")).values),
    }, names).to_string(float_format="{:.3g}".format))  # fmt: skip
    found = tree["posterior"].to_dataset()
    shift = old * np.isin(names, list(FULL.terms)) * found["age"]
    return found.assign(mu=found["mu"] + shift), convergence.summary


def drawn(posterior: xr.Dataset, fits: dict[str, Posterior]) -> xr.Dataset:
    """Draws of what a fit holds, of a machine nobody measured."""
    several = {n for n in posterior["quantity"].values
               if sum(n in told(fit) for fit in fits.values()) > 1}  # fmt: skip
    every = posterior.sizes["draw"] * posterior.sizes["chain"] // DRAWS
    posterior = posterior.isel(draw=slice(None, None, every))
    shape = posterior.sizes["chain"], posterior.sizes["draw"]
    mu, scatter = posterior["mu"], posterior["scatter"]
    rng = np.random.default_rng(1)
    terms = list(FULL.terms)
    z = rng.standard_normal((*shape, len(terms))) @ correlated(tuple(terms)).T
    z = z * np.sqrt(TAIL / rng.chisquare(TAIL, z.shape))
    # What all members of a group scatter by is drawn for every machine anew.
    own = np.array(scatter.sel(quantity=terms).values)
    shared = np.zeros_like(own)
    for members in SHARED:
        inside = [i for i, n in enumerate(terms) if n.startswith(members)]
        shared[..., inside] = own[..., inside].min(axis=-1, keepdims=True)
    own = np.sqrt(own**2 - shared**2)
    data = {"law": (("law_term",), terms, np.exp(mu.sel(quantity=terms).values + own * z))}

    def of(names: list[str]) -> np.ndarray:
        # Of scales that one machine tells, or none, the width of the prior is all that is known.
        x, varies = mu.sel(quantity=names).values, [float(n in several) for n in names]
        return x + varies * scatter.sel(quantity=names).values * rng.standard_normal(x.shape)

    noise = [p.name for p in NOISE]
    data["noise"] = ("noise_term",), noise, np.exp(of(noise))
    for prior in EFFECTS:
        if prior.name == "scatter_machine":
            data["scatter_environment"] = ("law_term",), terms, shared
            continue
        cost = next(f.posterior[prior.dims[0]].values for f in fits.values()
                    if prior.dims[0] in f.posterior.dims)  # fmt: skip
        x = of([f"{prior.name}[{n}]" for n in cost])
        data[prior.name] = prior.dims, list(cost), x if prior.kind == "normal" else np.exp(x)
    return xr.Dataset(
        {n: (("chain", "draw", *dims), x) for n, (dims, _, x) in data.items()},
        {dims[0]: names for dims, names, _ in data.values()},
    )


def measured(draws: xr.Dataset, fits: dict[str, Posterior]) -> xr.Dataset:
    """Draws of the machines measured with engines of today; else as of one nobody measured."""
    law, each = draws["law"], {}
    for name, fit in fits.items():
        if name in STATIC or fit.servers["gb_per_s"].isna().any():
            continue
        terms = [n for n in told(fit) if n in FULL.terms]
        own = fit.posterior["law"].isel(
            draw=slice(None, None, fit.posterior.sizes["draw"] // law.sizes["draw"])
        )
        values = law.to_series().unstack("law_term")
        values[terms] = own.sel(law_term=terms).to_series().unstack("law_term")
        # What is not drawn for every machine anew differs between hosts and releases likewise.
        rest = [n for n in terms if not n.startswith(HARDWARE)]
        z = np.random.default_rng(2).standard_normal((len(values), len(rest)))
        values[rest] *= np.exp(SAME_MACHINE_SD * z)
        each[fit.runs["machine"].iloc[0]] = values.stack().to_xarray()
    names = xr.DataArray(list(each), dims="machine", name="machine")
    return xr.Dataset({"law": xr.concat(each.values(), names).astype("float32")})


def ranges(fits: dict[str, Posterior]) -> dict[str, xr.Dataset]:
    """Tables with two rows, the least and the most of all that was measured."""
    tables = {}
    for table in TABLES:
        rows = pd.concat([f.tree[table].to_dataset().to_dataframe() for f in fits.values()])
        numeric = rows.select_dtypes("number")
        if table == "verifiers":
            groups = [part for _, part in numeric.groupby(rows["moe"])]
        else:
            groups = [numeric]
        ends = pd.concat([x.agg(["min", "max"]) for x in groups], ignore_index=True)
        ends = ends if table != "runs" else ends[[n for n in RANGES if n in ends]]
        ends = ends.assign(
            **{n: "" for n in rows if n not in ends and n in rows.select_dtypes("str")}
        )
        if table == "runs":
            unsaid = dict.fromkeys(("e2e_mean_s", "ttft_mean_s", "tpot_mean_s"), np.nan)
            ends = ends.assign(saturated=False, **unsaid)
        if table == "servers":
            ends = ends.assign(
                environment=["one machine", "another"], verifier="", drafter=["none", "any"]
            )
        ends.index = pd.Index([f"range {i}" for i in range(len(ends))], name=table[:-1])
        tables[table] = xr.Dataset.from_dataframe(ends)
    return tables


def build(names: list[str], cache: Path, old: bool = False) -> bsd.Fit:
    """The reference of these machines, of another with an engine of today, or of 2024."""
    fits: dict[str, Posterior] = {name: fit_of(name, cache) for name in names}
    for name, fit in fits.items():
        if not converged(fit):
            raise RuntimeError(f"the fit of {name} did not converge")
        s = fit.sampling
        print(f"{name}: {len(fit.runs)} runs, R-hat {s['rhat_max']}, ESS {s['ess_bulk_min']}, "
              f"mean error {fit.accuracy()['mean_error']:.1%}")  # fmt: skip
    posterior, summary = population(fits, old)
    draws, first = drawn(posterior, fits), next(iter(fits.values()))
    shape = draws.sizes["chain"], draws.sizes["draw"]
    acceptance = acceptance_draws(first.runs.iloc[:0], shape, seed=1)  # nobody's
    parts = {"posterior": draws, "acceptance": acceptance, **ranges(fits)}
    parts["machines"] = measured(draws, fits)
    spec = first.spec
    card = {"sources": {n: SOURCES.get(n, n) for n in names}, "note": NOTE}
    provenance = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": "machines by their data sheets", "card": card,
        "runs": sum(len(f.runs) for f in fits.values()),
        "requests": int(sum(f.runs["requests"].sum() for f in fits.values())),
    }  # fmt: skip
    tree = xr.DataTree.from_dict(parts)
    like = fits[names[0]].tree.attrs
    tree.attrs |= {**like, "spec": json.dumps(spec), "provenance": json.dumps(provenance),
                   "sampling": json.dumps(summary)}  # fmt: skip
    return bsd.Fit(tree)


def main() -> None:
    """Build and save it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/reference"))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    fit = build(list(SOURCES), given.cache)
    print(fit.save(given.out), given.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
