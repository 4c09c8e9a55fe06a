"""The fit and its predictions beside what PyMC, nutpie, NumPyro and Stan make of the same model.

    uv run --with jax --with numpyro benchmarks/peers.py [--verifier dense-60m] [--json]

Each sampler is run in a process of its own that finds no compiled code on disk, and again in one
that finds it: the smallest effective sample size (bulk) over all parameters, a second of sampling
and a second in all. The samplers draw from the same PyMC model of the shipped runs, 4 chains on all
cores, each as `pymc.sample(nuts_sampler=NAME)` does by default; posterior means are compared in
their own errors. Predictions are those of the measured runs by all draws, beside
`pymc.sample_posterior_predictive`. Stan samples its own program of that model (`peers_stan.py`), by
R's package rstan (Debian: r-cran-rstan), and only all runs. What is not installed is left out.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

PEERS = ("bayes_sd", "pymc", "nutpie", "numpyro", "stan")
CHAINS, DRAWS = 4, 1000
STAN_DRAWS = 250  # of a chain, and as many to tune: a gradient takes Stan many times as long


def model_and_runs(verifier: str) -> tuple[Any, Any]:
    """The default model, and the shipped runs, of one verifier if named."""
    import bayes_sd as bsd
    from bayes_sd.runs.read import corpus

    runs = bsd.read(corpus("vllm-cpu"))
    return bsd.LatencyModel(), runs.select(verifier=verifier) if verifier else runs


def told(posterior: Any, seconds: float, sampling_s: float, divergences: int) -> dict[str, Any]:
    """What is compared of a sample; of all parameters as they are sampled."""
    import arviz as az

    names = [n for n in posterior.data_vars if str(n).startswith(("log_", "scatter_", "moe_"))]
    own = posterior[names]
    ess = az.ess(own, method="bulk")
    fewest = min(float(x.min()) for x in ess.data_vars.values())
    mean = {"log_law": own["log_law"].mean(("chain", "draw")).values.tolist()}
    error = (own["log_law"].std(("chain", "draw")) / ess["log_law"] ** 0.5).values.tolist()
    return {
        "seconds": seconds,
        "sampling_s": sampling_s,
        "ess_min": fewest,
        "ess_per_sampling_s": fewest / sampling_s,
        "ess_per_s": fewest / seconds,
        "rhat_max": max(float(x.max()) for x in az.rhat(own).data_vars.values()),
        "divergences": divergences,
        "cpu_s": time.process_time(),
        "mean": mean["log_law"],
        "error": error,
    }


def of_bayes_sd(verifier: str) -> dict[str, Any]:
    """As `LatencyModel.fit` samples; and its predictions."""
    import numpy as np

    from bayes_sd.answers.fitted import run_outcome
    from bayes_sd.model.arrow import systems_of
    from bayes_sd.model.posterior import assemble
    from bayes_sd.model.sample import Sampling, sample
    from bayes_sd.physics.noise import NU, draw_runs

    model, runs = model_and_runs(verifier)
    begun = time.perf_counter()
    design = model.design(runs)
    initial = model.initial(design)
    systems = systems_of(design.data)
    tree, convergence, used = sample(
        model.graph(design), Sampling(), 1, False, initial, systems=systems
    )
    seconds = time.perf_counter() - begun
    row = told(tree["posterior"].to_dataset(), seconds, used["seconds_sample"],
               convergence.divergences)  # fmt: skip
    attrs = {"provenance": {}, "sampling": convergence.summary}
    fit = assemble(tree, design, asdict(model) | asdict(Sampling()), attrs, 1)
    begun = time.perf_counter()
    said, scale, _ = run_outcome(fit, fit.runs)
    runs_s = draw_runs(said.e2e_s, scale, np.random.default_rng(1).standard_t(NU, scale.shape))
    row["predict_s"], row["predicted_draws"] = time.perf_counter() - begun, fit.draws
    row["predicted"] = np.median(np.log(runs_s), axis=0).tolist()
    return row


def of_pymc(verifier: str, sampler: str) -> dict[str, Any]:
    """As `pymc.sample` samples by default; and `pymc.sample_posterior_predictive`."""
    import pymc as pm

    model, runs = model_and_runs(verifier)
    begun = time.perf_counter()
    with model.build(runs):
        how: dict[str, Any] = {"chains": CHAINS, "draws": DRAWS, "tune": DRAWS, "random_seed": 1}
        how |= {"nuts_sampler": sampler, "cores": os.cpu_count()}  # of itself it takes half of them
        if sampler == "numpyro":
            import peers_jax  # noqa: F401

            how["nuts_sampler_kwargs"] = {"chain_method": "parallel"}
        tree = pm.sample(**how, progressbar=False, compute_convergence_checks=False)
        seconds = time.perf_counter() - begun
        stats = tree["sample_stats"]
        row = told(tree["posterior"].to_dataset(), seconds,
                   float(tree["posterior"].attrs["sampling_time"]),
                   int(stats["diverging"].sum()))  # fmt: skip
        if sampler == "pymc":
            begun = time.perf_counter()
            seen = pm.sample_posterior_predictive(
                tree, var_names=["e2e"], progressbar=False, random_seed=1
            )
            row["predict_s"] = time.perf_counter() - begun
            begun = time.perf_counter()
            pm.sample_posterior_predictive(tree, var_names=["e2e"], progressbar=False)
            row["predict_again_s"] = time.perf_counter() - begun
            predicted = seen["posterior_predictive"]["e2e"]
            row["predicted_draws"] = predicted.sizes["chain"] * predicted.sizes["draw"]
            row["predicted"] = predicted.median(("chain", "draw")).values.tolist()
    return row


def of_stan(verifier: str, cache: str) -> dict[str, Any]:
    """As rstan's `sampling` samples by default, from where PyMC starts."""
    import peers_stan

    model, runs = model_and_runs(verifier)
    design = model.design(runs)
    how = {"chains": CHAINS, "draws": STAN_DRAWS, "cores": os.cpu_count() or 1}
    built, folder = model.graph(design), Path(cache)
    return told(*peers_stan.sample(built, design, model.priors, folder, **how))


def installed(peer: str) -> bool:
    """Whether a peer can be asked."""
    import peers_stan

    return peers_stan.version() != "" if peer == "stan" else bool(importlib.util.find_spec(peer))


def child(peer: str, verifier: str, cache: str) -> dict[str, Any]:
    """What a new process measures, with compiled code in a folder of its own."""
    flags = {"PYTENSOR_FLAGS": f"base_compiledir={cache}", "NUMBA_CACHE_DIR": cache}
    flags |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={CHAINS}"}
    flags |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", __file__, "--child", peer, "--verifier", verifier]
    done = subprocess.run(command, env=os.environ | flags, check=True, stdout=subprocess.PIPE)
    row = json.loads(done.stdout.splitlines()[-1])
    short = {name: value for name, value in row.items() if not isinstance(value, list)}
    print(peer, short, file=sys.stderr)
    return row


def main() -> None:
    """Print a table and the ratios to PyMC, or with --json one object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--verifier", default="", help="only its runs; '' for all")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        warnings.simplefilter("ignore")
        if given.child == "stan":
            row = of_stan(given.verifier, os.environ["NUMBA_CACHE_DIR"])
        elif given.child == "bayes_sd":
            row = of_bayes_sd(given.verifier)
        else:
            row = of_pymc(given.verifier, given.child)
        print(json.dumps(row))
        return

    import numpy as np
    import pandas as pd

    from bayes_sd import __version__

    peers = [p for p in given.peers.split(",") if installed(p)]
    peers = [p for p in peers if p != "stan" or not given.verifier]  # its program is of several
    rows: dict[str, dict[str, Any]] = {}
    for peer in peers:
        with tempfile.TemporaryDirectory() as cache:
            for when in ("first", "second"):
                rows[f"{peer}, {when}"] = child(peer, given.verifier, cache)
    table = pd.DataFrame(rows).T
    versions = {p: importlib.import_module(p).__version__ for p in peers if p in PEERS[1:4]}
    if "stan" in peers:
        import peers_stan

        versions["rstan"] = peers_stan.version()
    print(f"bayes_sd {__version__}, {versions}, {os.cpu_count()} cores")
    if given.json:
        print(json.dumps(rows))
        return
    lists = ["mean", "error", "predicted"]
    print(table.drop(columns=lists).astype(float).round(3).to_string())
    for when in ("first", "second"):
        for peer in peers[1:]:
            own, other = rows[f"bayes_sd, {when}"], rows[f"{peer}, {when}"]
            for name in ("ess_per_sampling_s", "ess_per_s"):
                print(f"{name}, {when} process, over {peer}: {own[name] / other[name]:.2f}")
            apart = np.subtract(own["mean"], other["mean"])
            errors = apart / np.hypot(own["error"], other["error"])
            print(f"  posterior means apart by {np.abs(errors).max():.1f} of their errors at most")
            if "predicted" in other:
                each = [r["predict_s"] / r["predicted_draws"] for r in (own, other)]
                print(f"  predictions: {each[1] / each[0]:.1f} times as fast as PyMC's")
                gap = np.abs(np.subtract(own["predicted"], other["predicted"])).max()
                print(f"  predicted medians differ by {gap:.3f} (log) at most")


if __name__ == "__main__":
    main()
