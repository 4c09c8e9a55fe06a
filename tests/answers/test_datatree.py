"""A fit as ArviZ takes it: groups, variables and bounds; the functions people call run on it."""

import arviz as az
import matplotlib
import numpy as np
import pytest
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.fit import Fit

matplotlib.use("Agg")
OBSERVED = {"e2e", "ttft", "spread", "ttft_spread"}


@pytest.fixture(scope="module")
def tree(fit: Fit) -> xr.DataTree:
    return fit.to_datatree(prior_draws=0)


def test_the_groups_are_those_of_arviz_and_fit_each_other(fit: Fit, tree: xr.DataTree) -> None:
    predicted = {"posterior_predictive", "log_likelihood", "observed_data", "constant_data"}
    assert {*tree.children} == {"posterior", "sample_stats", *predicted}
    assert {*tree["observed_data"].data_vars} == {*tree["posterior_predictive"].data_vars}
    assert {*tree["observed_data"].data_vars} == OBSERVED
    assert {*tree["log_likelihood"].data_vars} == OBSERVED | {"censored"}
    for group in ("posterior_predictive", "log_likelihood"):
        for name, values in tree[group].data_vars.items():
            assert values.shape[:2] == fit.shape and np.isfinite(values).all(), name
    assert np.array_equal(tree["posterior"]["law"], fit.posterior["law"])
    observed = np.exp(tree["observed_data"]["e2e"].values)
    np.testing.assert_allclose(observed, fit.runs["e2e_mean_s"])
    inside = tree["posterior_predictive"]["e2e"].quantile([0.05, 0.95], ("chain", "draw"))
    share = ((inside[0] < np.log(observed)) & (np.log(observed) < inside[1])).mean()
    assert 0.8 < share < 0.99


def test_a_run_past_saturation_is_a_bound_and_no_observation(fit: Fit, tree: xr.DataTree) -> None:
    cut, known = fit.censored_runs, tree["constant_data"].to_dataset()
    assert set(known.dims) == {"run", "censored_run"}
    assert np.allclose(np.exp(known["censored"]), cut["e2e_mean_s"])
    servers = known["server"].sel(run=known["censored_run"].values)
    assert list(servers.values) == cut["server"].tolist()
    assert not {*known["censored_run"].values} & {*tree["observed_data"]["e2e_run"].values}
    density = tree["log_likelihood"]["censored"]  # log of a probability, near 1 where it fits
    assert (density <= 1e-9).all() and (density.mean(("chain", "draw")) > np.log(0.1)).all()


@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")  # of so few draws
def test_the_functions_of_arviz_take_it_as_it_is(tree: xr.DataTree) -> None:
    loo = az.loo(tree, var_name="e2e")
    assert loo.n_data_points == tree["observed_data"].sizes["e2e_run"] and loo.elpd > 0
    assert 5 < loo.p < 100
    assert len(az.summary(tree, var_names="law")) == tree["posterior"].sizes["law_term"]
    az.plot_ppc_dist(tree, var_names="e2e", num_samples=20)
    az.plot_trace_dist(tree, var_names="scatter_server")
    az.plot_loo_pit(tree, var_names="e2e")


def test_seeds_make_predictions(fit: Fit) -> None:
    a, b, c = (fit.thin(20).to_datatree(prior_draws=0, seed=s) for s in (1, 1, 2))
    name = "posterior_predictive"
    assert a[name].equals(b[name]) and not a[name].equals(c[name])
    assert a["log_likelihood"].equals(c["log_likelihood"])


@pytest.mark.parametrize("wrong", [-1, 1.5, True])
def test_other_numbers_of_prior_draws_are_refused(fit: Fit, wrong: object) -> None:
    with pytest.raises(InputError, match="prior_draws = .*a whole number of at least 0"):
        fit.to_datatree(prior_draws=wrong)  # type: ignore[arg-type]
