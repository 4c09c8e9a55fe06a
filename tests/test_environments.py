"""Runs of two environments in one fit: factors of their own, shared models."""

import json

import numpy as np
import pytest
from traces_helpers import CORPUS
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.cli import app
from bayes_sd.model.priors import HARDWARE, environment_factors
from bayes_sd.predict.system import resolve
from bayes_sd.report.decisions import measured_arms

SECOND = CORPUS.parent / "vllm-cpu-2"
VERIFIERS = ["dense-25m", "dense-60m", "dense-115m"]


@pytest.fixture(scope="module")
def both() -> bsd.Traces:
    return bsd.read_traces([CORPUS, SECOND]).select(verifier=VERIFIERS)


@pytest.fixture(scope="module")
def fit(both: bsd.Traces) -> bsd.Fit:
    """A short one: what is tested is where the factors go, not how well they are known."""
    try:
        return bsd.LatencyModel().fit(both, seed=1, draws=300, tune=500, progress=False)
    except bsd.ConvergenceError as error:
        return error.fit


def environments(fit: bsd.Fit) -> list[str]:
    return [str(e) for e in fit.posterior["environment"].values]


def test_factors_are_around_one_and_shown(fit: bsd.Fit) -> None:
    factor = fit.posterior["factor_environment"]
    assert list(factor["hardware"].values) == list(HARDWARE)
    np.testing.assert_allclose(factor.prod("environment"), 1.0, rtol=1e-6)
    assert (factor > 0.2).all() and (factor < 5).all()
    names = set(fit.coefficients()["name"])
    assert {f"tau_environment[{h}]" for h in HARDWARE} <= names


def test_an_environment_has_to_be_chosen_where_it_matters(fit: bsd.Fit) -> None:
    load = bsd.grid(rps=1.0, prompt=128, output=64)
    with pytest.raises(bsd.InputError, match=r"2 environments; choose one"):
        fit.latency(load, 0, bsd.System("dense-25m"))
    with pytest.raises(bsd.InputError, match="no environment 'H100'; it knows"):
        fit.latency(load, 0, bsd.System("dense-25m", environment="H100"))
    first, second = (
        fit.latency(load, 0, bsd.System("dense-25m", environment=e)).draws["mean_s"].median()
        for e in environments(fit)
    )
    assert first != second and 0.2 < float(first / second) < 5


def test_a_new_model_is_answered_for_each_environment(fit: bsd.Fit) -> None:
    load = bsd.grid(rps=0.5, prompt=128, output=64)
    for environment in environments(fit):
        new = bsd.System(bsd.Size(80e6), environment=environment)
        assert np.isfinite(float(fit.latency(load, 0, new).draws["mean_s"].median()))
    with pytest.raises(bsd.InputError, match="choose one"):
        fit.latency(load, 0, bsd.System(bsd.Size(80e6)))


def test_factors_reach_the_coefficients_they_name(fit: bsd.Fit) -> None:
    one, other = (
        resolve(fit, bsd.System("dense-25m", environment=e), 0, seed=0).theta
        for e in environments(fit)
    )
    factor = fit.posterior["factor_environment"]
    for group, members in HARDWARE.items():
        here = factor.sel(hardware=group, drop=True)
        ratio = here.isel(environment=0, drop=True) / here.isel(environment=1, drop=True)
        for name in set(members) & set(one):
            np.testing.assert_allclose(one[name] / other[name], ratio)
    for name in ("wait", "attention_tokens", "context_tokens", "r_tok"):
        assert (one[name] == other[name]).all()
    assert environment_factors(["wait"], [1, 2, 3]) == {}


def test_fitted_runs_of_both_resemble_what_was_measured(fit: bsd.Fit) -> None:
    error = (fit.runs["fitted_e2e_s"] / fit.runs["e2e_mean_s"] - 1).abs()
    assert (error.groupby(fit.runs["environment"]).median() < 0.12).all()


def test_arms_are_decided_where_they_ran(fit: bsd.Fit) -> None:
    arms = measured_arms(fit)
    assert {system.environment for system, _ in arms} == set(environments(fit))
    ran = fit.runs[["environment", "verifier", "drafter", "draft_tokens"]].drop_duplicates()
    for system, k in arms:
        assert (
            (ran["environment"] == system.environment)
            & (ran["verifier"] == system.verifier)
            & (ran["drafter"] == system.drafter)
            & (ran["draft_tokens"] == k)
        ).any()


def test_runs_of_an_unknown_environment_are_not_predicted(fit: bsd.Fit, both: bsd.Traces) -> None:
    moved = bsd.Traces(both.runs.assign(environment="elsewhere"), both.set_aside)
    with pytest.raises(bsd.EvidenceError, match="'elsewhere' cannot be predicted"):
        bsd.predict_runs(fit, moved)


def test_the_command_line_takes_an_environment(
    fit: bsd.Fit, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = fit.save(tmp_path_factory.mktemp("environments") / "fit.nc")
    words = ["predict", str(path), "--rps", "1", "--prompt", "128", "--output", "64", "--json"]
    words += ["--verifier", "dense-25m"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1 and "choose one" in refused.stderr
    answered = CliRunner().invoke(app, [*words, "--environment", environments(fit)[0]])
    assert answered.exit_code == 0 and len(json.loads(answered.stdout)["rows"]) > 0
