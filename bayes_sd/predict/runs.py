"""The law at the conditions of measured runs: fitted values, and predictions of held-out runs."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError
from bayes_sd.model.design import NONE, build_design
from bayes_sd.physics.law import NU, SOFTNESS, outcome
from bayes_sd.physics.stages import draft_passes
from bayes_sd.predict.latency import mean_of, scatter
from bayes_sd.predict.size import Size
from bayes_sd.predict.system import System, resolve

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit
    from bayes_sd.traces import Traces

FITTED_DRAWS = 100  # a chain, for the medians kept with a fit


def run_outcome(fit: "Fit", runs: pd.DataFrame, seed: int = 0, metric: str = "e2e") -> xr.Dataset:
    """Draws of the law for every run: dims (chain, draw, run).

    A verifier, drafter or server that the fit has not seen is drawn from its population, given its
    size. Acceptance is the run's own, as it is in the likelihood.

    Returns
    -------
    xarray.Dataset
        ``e2e_s``, ``ttft_s``, ``c1_s``, ``c2_s``, ``share`` (of the latency that others cause);
        of the `metric` ("e2e", "ttft", "tpot") ``mean_s``, ``scale`` (scatter of the log mean,
        sampling error of the run's requests included) and ``variance`` (of log values of its
        requests).
    """
    posterior = fit.unlabelled
    known = {level: set(posterior[level].values.tolist()) for level in ("verifier", "drafter")}
    parts = []
    keys = ["environment", "verifier", "drafter", "draft_tokens", "acceptance_imposed"]
    environments = set(fit.runs["environment"])
    for _, rows in runs.reset_index(drop=True).groupby(keys, dropna=False):
        first = rows.iloc[0]
        verifier: str | Size = str(first["verifier"])
        if verifier not in known["verifier"]:
            verifier = Size(
                first["verifier_params"],
                first["verifier_active_params"],
                int(first["experts"]),
                int(first["experts_per_token"]),
                *(
                    None if np.isnan(first[name]) else float(first[name])
                    for name in ("verifier_layers", "verifier_kv_bytes")
                ),
            )
        drafter: str | Size | None = str(first["drafter"])
        if drafter == NONE:
            drafter = None
        elif drafter not in known["drafter"]:
            drafter = Size(first["drafter_params"])
        imposed = first["acceptance_imposed"]
        acceptance = None if np.isnan(imposed) else float(imposed)
        k = int(first["draft_tokens"])
        environment = str(first["environment"])
        if environment not in environments and len(environments) > 1:
            raise EvidenceError(
                f"Runs of environment {environment!r} cannot be predicted: "
                f"the fit knows {'; '.join(sorted(environments))}."
            )
        where = environment if environment in environments else None
        system = System(verifier, drafter, acceptance, where)
        resolved = resolve(fit, system, k, seed, drafter_loaded=drafter is not None)
        columns = rows.rename_axis("run").to_xarray()
        closed = xr.where(columns["loop"] == "closed", 1.0, 0.0)
        load = {
            "k": float(k),
            "draft_passes": float(draft_passes(k, int(drafter is not None))),
            **{n: columns[n] for n in ("cycles", "cycles_var", "prompt_tokens", "output_tokens")},
            "prompt_cv2": (columns["prompt_tokens_sd"].fillna(0.0) / columns["prompt_tokens"]) ** 2,
            "output_cv2": (columns["output_tokens_sd"].fillna(0.0) / columns["output_tokens"]) ** 2,
            "closed": closed,
            "rate_rps": columns["rate_rps"].fillna(0.0) * (1 - closed),
            "others": (columns["concurrency"].fillna(1.0) - 1) * closed,
        }
        law = outcome(resolved.theta, resolved.sizes, load, SOFTNESS, law=fit.law)
        scale, variance = scatter(fit, law, load, metric, columns["requests"])
        parts.append(
            xr.Dataset(
                {
                    "e2e_s": law.e2e_s,
                    "ttft_s": law.ttft_s,
                    "c1_s": law.c1_s,
                    "c2_s": law.c2_s,
                    "share": law.others_share,
                    "mean_s": mean_of(metric, law, columns["output_tokens"]),
                    "scale": (scale**2 + variance / columns["requests"]) ** 0.5,
                    "variance": variance,
                }
            )
        )
    return xr.concat(parts, dim="run").sortby("run").transpose("chain", "draw", "run")


def predict_runs(fit: "Fit", traces: "Traces", prob: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Predict the mean latency of runs the fit has not seen.

    Parameters
    ----------
    fit : Fit
    traces : Traces
        Steady runs are predicted, saturated ones left out.
    prob : float
        Probability of the equal-tailed predictive interval.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The runs with ``predicted_s`` (median), ``low_s``, ``high_s``, ``inside``, ``log_score``
        (log density of the log mean) and ``pit``.
    """
    from scipy.special import logsumexp

    runs = build_design(traces, censored=False).runs
    law = run_outcome(fit, runs, seed).stack(sample=("chain", "draw"))
    log_mean, scale = np.log(law["e2e_s"].values), law["scale"].values
    rng = np.random.default_rng(seed)
    drawn = log_mean + scale * rng.standard_t(NU, log_mean.shape)
    tail = (1 - prob) / 2
    low, middle, high = np.exp(np.quantile(drawn, [tail, 0.5, 1 - tail], axis=1))
    observed = np.log(runs["e2e_mean_s"].to_numpy())[:, None]
    density = _density(runs, log_mean, scale)
    return runs.assign(
        predicted_s=middle,
        low_s=low,
        high_s=high,
        inside=(runs["e2e_mean_s"] >= low) & (runs["e2e_mean_s"] <= high),
        log_score=logsumexp(density, axis=1) - np.log(density.shape[1]),
        pit=(drawn < observed).mean(axis=1),
    )


def run_log_density(fit: "Fit", runs: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Log density of each run's log mean latency, draw by draw: (draws, runs)."""
    law = run_outcome(fit, runs, seed).stack(sample=("chain", "draw"))
    return _density(runs, np.log(law["e2e_s"].values), law["scale"].values).T


def _density(runs: pd.DataFrame, log_mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    from scipy.stats import t

    observed = np.log(runs["e2e_mean_s"].to_numpy())[:, None]
    return np.asarray(t.logpdf((observed - log_mean) / scale, NU) - np.log(scale))


def fitted(fit: "Fit", runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Posterior medians for each fitted run: mean latency and TTFT, C1, C2 (s), utilization."""
    law = run_outcome(fit.thin(FITTED_DRAWS * fit.tree["posterior"].sizes["chain"]), runs).median(
        ("chain", "draw")
    )
    return {
        "fitted_e2e_s": law["e2e_s"].values,
        "fitted_ttft_s": law["ttft_s"].values,
        "fitted_c1_s": law["c1_s"].values,
        "fitted_c2_s": law["c2_s"].values,
        "utilization": law["share"].values,
    }
