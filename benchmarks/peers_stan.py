"""The model as a Stan program, which R's rstan compiles and samples.

The law of a run is traced as for our own sampler and printed in Stan's language; priors, effects
and likelihoods are written out below and are those of ``bayes_sd.model.graph``, for runs of several
verifiers, drafters and servers in one environment.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytensor.scalar as ps
import xarray as xr
from common import statements
from pytensor.graph.traversal import ancestors

from bayes_sd.model import priors as known
from bayes_sd.model.design import SPREADS, Design
from bayes_sd.model.graph import _server_means
from bayes_sd.model.kernel import SOURCE, PerRun
from bayes_sd.physics.law import FULL
from bayes_sd.physics.noise import NU, TINY

POWERS = {"(2.0)": "{0} * {0}", "(0.5)": "sqrt({0})", "(-1.0)": "1 / {0}"}
SOURCES = SOURCE | {
    ps.Abs: lambda x: f"fabs({x[0]})",
    ps.Exp: lambda x: f"exp({x[0]})",
    ps.Log: lambda x: f"log({x[0]})",
    ps.Sign: lambda x: f"({x[0]} > 0) - ({x[0]} < 0)",
    ps.Cast: lambda x: f"1.0 * {x[0]}",
    ps.Switch: lambda x: f"{x[0]} ? {x[1]} : {x[2]}",
    ps.Pow: lambda x: POWERS.get(x[1], "pow({0}, {1})").format(*x),
}
PROGRAM = """
functions {{
{functions}
}}
data {{
  int N; vector[{T}] law_middle; matrix[{T}, {T}] law_root;
  vector[{K}] noise_middle; vector[{K}] noise_sd;
  vector[4] moe_sd; vector[2] scatter_prior[3];
  int V; int D; int S; row_vector[V] moe; matrix[V, S] ran_v; matrix[D, S] ran_d;
  int level[{G}, N]; matrix[{X}, N] x; matrix[{XV}, V] x_v; matrix[{XD}, D] x_d;
  {data}
}}
parameters {{
  vector[{T}] log_law; vector[{K}] log_noise; vector[4] moe_effect;
  vector<lower=0>[4] scatter_verifier; vector<lower=0>[1] scatter_drafter;
  vector<lower=0>[2] scatter_server;
  matrix[4, V] of_verifier; matrix[1, D] of_drafter; matrix[2, S] of_server;
}}
transformed parameters {{
  matrix[2, S] log_server = diag_pre_multiply(sqrt(scatter_server), of_server);
  matrix[4, V] log_verifier; matrix[1, D] log_drafter;
  {{
    vector[{T}] law = exp(log_law);
    row_vector[V] mean_v = (ran_v * log_server[1]')';
    row_vector[D] mean_d = (ran_d * log_server[1]')';
    for (v in 1:V) log_verifier[, v] = log(costs_v(law, col(x_v, v))) + moe_effect * moe[v]
      + mean_v[v] + sqrt(scatter_verifier) .* of_verifier[, v];
    for (d in 1:D) log_drafter[, d] = log(costs_d(law, col(x_d, d)))
      + mean_d[d] + sqrt(scatter_drafter) .* of_drafter[, d];
  }}
}}
model {{
  vector[{T}] law = exp(log_law);
  vector[{K}] noise = exp(log_noise);
  matrix[{O}, N] said;
  log_law ~ multi_normal_cholesky(law_middle, law_root);
  log_noise ~ normal(noise_middle, noise_sd);
  moe_effect ~ normal(0, moe_sd);
  scatter_verifier ~ lognormal(scatter_prior[1, 1], scatter_prior[1, 2]);
  scatter_drafter ~ lognormal(scatter_prior[2, 1], scatter_prior[2, 2]);
  scatter_server ~ lognormal(scatter_prior[3, 1], scatter_prior[3, 2]);
  // Effects half way between themselves and standardized ones, as PyMC's peers sample them.
  for (v in 1:V) of_verifier[, v] ~ normal(0, sqrt(scatter_verifier));
  for (d in 1:D) of_drafter[, d] ~ normal(0, sqrt(scatter_drafter));
  for (s in 1:S) of_server[, s] ~ normal(0, sqrt(scatter_server));
  {{
    matrix[4, V] f_v; matrix[1, D] f_d; matrix[2, S] f_s = exp(log_server);
    row_vector[V] mean_v = (ran_v * log_server[1]')';
    row_vector[D] mean_d = (ran_d * log_server[1]')';
    for (v in 1:V) f_v[, v] = exp(log_verifier[, v] - mean_v[v]) ./ costs_v(law, col(x_v, v));
    for (d in 1:D) f_d[, d] = exp(log_drafter[, d] - mean_d[d]) ./ costs_d(law, col(x_d, d));
    for (n in 1:N) said[, n] = of_run({arguments}, col(x, n));
  }}
  {likelihoods}
}}
"""
LIKELIHOOD = """
  {{
    vector[N] log_mean = log(said[{mean}]');
    vector[N] scale = sqrt(square(said[{scale}]') + square(se_{m}));
    vector[N] error = sqrt(2 ./ (n_eff_{m} - 1) + square(2 * noise[{spread}]));
    log_{m}[{m}_rows] ~ student_t({NU}, log_mean[{m}_rows], scale[{m}_rows]);
    log_var_{m}[{m}_spread_rows]
      ~ normal(log(said[{variance}]')[{m}_spread_rows], error[{m}_spread_rows]);
    {censored}
  }}"""
CENSORED = """for (i in censored_rows) {{
      real t = (log_mean[i] - log_e2e[i]) / scale[i] / sqrt({NU});
      real c = 1 / (1 + square(t));
      target += log(0.5 + (atan(t) + t * c * (1 + 2.0 / 3 * c)) / pi() + {TINY});
    }}"""
SCRIPT = """
suppressMessages(library(rstan)); rstan_options(auto_write = TRUE)
if (rstan_options("boost_lib") == "") rstan_options(boost_lib = "/usr/include")  # as in Debian
given <- read_rdump("data.R"); begun <- proc.time()[["elapsed"]]
model <- stan_model("model.stan"); built <- proc.time()[["elapsed"]]; set.seed(1)
near <- function(x) x + runif(length(x), -1, 1)
start <- function() list(log_law = near(given$law_middle), log_noise = near(given$noise_middle),
  moe_effect = runif(4, -1, 1), scatter_verifier = rep(0.15, 4), scatter_drafter = array(0.15, 1),
  scatter_server = rep(0.06, 2), of_verifier = matrix(runif(4 * given$V, -0.1, 0.1), 4),
  of_drafter = matrix(runif(given$D, -0.1, 0.1), 1),
  of_server = matrix(runif(2 * given$S, -0.1, 0.1), 2))
fit <- sampling(model, given, chains = {chains}, iter = 2 * {draws}, warmup = {draws},
  cores = {cores}, seed = 1, refresh = 0, init = start)
sampled <- proc.time()[["elapsed"]]
kept <- extract(fit, permuted = FALSE)
divergent <- sum(sapply(get_sampler_params(fit, FALSE), function(x) sum(x[, "divergent__"])))
writeLines(dimnames(kept)[[3]], "names.txt"); writeBin(as.double(kept), "draws.bin")
writeLines(format(c(sampled - begun, sampled - built, divergent)), "times.txt")
"""


def version() -> str:
    """Of R's package rstan; empty where there is none."""
    ask = ["Rscript", "-e", 'cat("", as.character(packageVersion("rstan")))']
    if not shutil.which("Rscript"):
        return ""
    return "".join(subprocess.run(ask, capture_output=True, text=True).stdout.split()[-1:])


def function(name: str, op: PerRun, groups: list[str]) -> str:
    """A traced function of a run in Stan's language; groups of parameters and data are vectors."""
    graph, counts = op.traced.value, op.traced.parameters
    read = [f"{g}[{i + 1}]" for g, n in zip(groups, counts, strict=True) for i in range(n)]
    read += [f"x[{i + 1}]" for i in range(op.traced.data)]
    lines, ends = statements(graph, read, SOURCES, "    real {} = {};")
    given = ", ".join(f"vector {g}" for g in [*groups, "x"])
    places = sum(n or 1 for n in op.traced.outputs) - op.traced.detached
    shown = ", ".join(ends[:places])
    return "\n".join([f"  vector {name}({given}) {{", *lines, f"    return [{shown}]';", "  }"])


def program(model: pm.Model, design: Design, priors: tuple[known.Prior, ...]) -> tuple[str, dict]:
    """The Stan program of a model of one environment, and its data."""
    found = [v.owner for v in ancestors(model.basic_RVs) if v.owner]
    nodes = {id(node): node for node in found if isinstance(node.op, PerRun)}.values()
    by_size = {node.op.traced.outputs[0]: node for node in nodes}
    verifiers, drafters, run = by_size[4], by_size[1], by_size[0]
    by_name = {p.name: p for p in priors}
    law = design.told(tuple(by_name[p.name] for p in known.population(FULL)))
    noise = [p.name for p in known.NOISE]
    middle, sd = (np.array([getattr(by_name[n], x) for n in noise]) for x in "ab")
    root = known.correlated(tuple(p.name for p in law))
    scatters = [by_name[f"scatter_{level}"] for level in ("verifier", "drafter", "server")]
    moe = design.verifiers["moe"].to_numpy(float)
    data: dict[str, Any] = {
        "N": len(design.table), "V": len(design.verifiers), "D": len(design.drafters),
        "S": len(design.servers), "moe": moe, "moe_sd": np.full(4, by_name["moe_effect"].b),
        "law_middle": np.log([p.a for p in law]),
        "law_root": np.array([p.b for p in law])[:, None] * root,
        "noise_middle": np.log(middle), "noise_sd": sd,
        "scatter_prior": np.array([[np.log(p.a), p.b] for p in scatters]),
        "ran_v": _server_means(design, "verifier"), "ran_d": _server_means(design, "drafter"),
        "level": run.inputs[-2].data + 1, "x": run.inputs[-1].data,
        "x_v": verifiers.inputs[-1].data, "x_d": drafters.inputs[-1].data,
    }  # fmt: skip
    names, blocks, declared = ("law", "noise", "f_s", "f_v", "f_d"), [], []
    for at, metric in enumerate(SPREADS):
        for name in ("log", "se", "n_eff"):
            data[f"{name}_{metric}"] = np.nan_to_num(design.data[f"{name}_{metric}"])
            declared.append(f"vector[N] {name}_{metric};")
        full, rows = np.zeros(len(design.table)), design.data[f"{metric}_spread_rows"]
        full[rows] = design.data[f"log_var_{metric}"][rows]
        data[f"log_var_{metric}"] = full
        declared.append(f"vector[N] log_var_{metric};")
        for name in (f"{metric}_rows", f"{metric}_spread_rows"):
            data[name] = design.data[name] + 1
            declared.append(f"int {name}[{len(data[name])}];")
        blocks.append(LIKELIHOOD.format(
            m=metric, mean=3 * at + 1, scale=3 * at + 2, variance=3 * at + 3, NU=NU,
            spread=noise.index("spread_sd") + 1,
            censored=CENSORED.format(NU=NU, TINY=TINY) if metric == "e2e" else "",
        ))  # fmt: skip
    data["censored_rows"] = design.data["censored_rows"] + 1
    declared.append(f"int censored_rows[{len(data['censored_rows'])}];")
    functions = [
        function("costs_v", verifiers.op, ["law"]),
        function("costs_d", drafters.op, ["law"]),
    ]
    functions.append(function("of_run", run.op, list(names)))
    of_level = [f"col({g}, level[{j + 1}, n])" for j, g in enumerate(names) if j > 1]
    text = PROGRAM.format(
        functions="\n".join(functions), T=len(law), K=len(noise), G=len(names),
        X=run.op.traced.data, XV=verifiers.op.traced.data, XD=drafters.op.traced.data,
        O=3 * len(SPREADS), data="\n  ".join(declared),
        arguments=", ".join(["law", "noise", *of_level]), likelihoods="".join(blocks),
    )  # fmt: skip
    return text, data


def dumped(data: dict[str, Any]) -> str:
    """Data as R reads it."""
    lines = []
    for name, value in data.items():
        array = np.asarray(value)
        text = [str(x) if array.dtype.kind == "i" else repr(float(x)) for x in array.ravel("F")]
        text = [{"inf": "Inf", "nan": "NaN"}.get(x, x) for x in text]
        shape = ", ".join(f"{n}L" for n in array.shape)
        wrapped = f"structure(c({', '.join(text)}), .Dim = c({shape}))"
        lines.append(f"{name} <- {wrapped if array.ndim else text[0]}")
    return "\n".join(lines)


def sample(
    model: pm.Model, design: Design, priors: tuple[known.Prior, ...], folder: Path, **how: int
) -> tuple[xr.Dataset, float, float, int]:
    """Draws by the names of the model; seconds in all and of sampling; divergences."""
    text, data = program(model, design, priors)
    path = folder / "model.stan"
    if not path.is_file() or path.read_text() != text:  # else rstan finds what it compiled
        path.write_text(text)
    (folder / "data.R").write_text(dumped(data))
    (folder / "sample.R").write_text(SCRIPT.format(**how))
    subprocess.run(["Rscript", "sample.R"], cwd=folder, check=True, capture_output=True)
    names = (folder / "names.txt").read_text().split()
    shape = (how["draws"], how["chains"], len(names))
    draws = np.fromfile(folder / "draws.bin").reshape(shape, order="F").transpose(1, 0, 2)
    total, sampling, divergent = map(float, (folder / "times.txt").read_text().split())
    found = {}
    for name in dict.fromkeys(n.split("[")[0] for n in names):
        own = [i for i, n in enumerate(names) if n.split("[")[0] == name]
        found[name] = (("chain", "draw", f"{name}_dim"), draws[:, :, own])
    return xr.Dataset(found), total, sampling, int(divergent)
