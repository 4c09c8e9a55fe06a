"""LatencyModel: priors that are shown, changed and refused; settings; what fit passes on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from bayes_sd.errors import InputError
from bayes_sd.fit import LatencyModel
from bayes_sd.model.design import build_design
from bayes_sd.model.priors import Prior
from bayes_sd.physics.law import Law
from bayes_sd.runs.schema import Runs


def test_print_shows_every_prior_with_interval_unit_and_reason() -> None:
    lines = str(LatencyModel()).splitlines()
    assert not any(line.startswith("host_") for line in lines)  # no part of the default law
    assert "host_prefill_alone" in str(LatencyModel(law=Law(("host",))))
    assert "scatter_drafter" not in str(LatencyModel(pooling="none"))
    for prior in LatencyModel().used:
        (line,) = [each for each in lines if each.split(" ", 1)[0] == prior.name]
        low, high = prior.interval()
        for part in (prior.unit, prior.meaning, prior.reason, f"{low:.2g} .. {high:.2g}"):
            assert part in line
        assert len(prior.reason) > 10 or prior.reason.startswith("as ")


@pytest.mark.parametrize(
    ("kind", "a", "b", "expected"),
    [
        ("lognormal", 0.02, 1.5, (0.02 * np.exp(1.5 * ndtri([0.05, 0.95])))),
        ("normal", 0.1, 0.3, 0.1 + 0.3 * ndtri([0.05, 0.95])),
    ],
)
def test_an_interval_holds_ninety_percent(kind: str, a: float, b: float, expected: Any) -> None:
    prior = Prior("x", kind, a, b, "s", "meaning", "reason")
    assert prior.interval() == pytest.approx(expected, rel=1e-3)


@pytest.mark.sample
def test_the_graph_has_the_priors_of_the_model(runs: Runs) -> None:
    import pymc as pm

    model = LatencyModel().with_prior("queue_cycles", a=40.0, b=1e-9)
    graph = model.build(runs.select(verifier="dense-25m"))
    names = list(graph.coords["law_term"])
    logs = pm.draw(graph["log_law"], random_seed=1, mode="FAST_COMPILE")
    assert logs[names.index("queue_cycles")] == pytest.approx(np.log(40.0))
    assert logs[names.index("read_weights")] != pytest.approx(np.log(40.0))


BASE = LatencyModel()
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown prior": (
        lambda: BASE.with_prior("s_pas"),
        r"name = 's_pas': must be one of read_weights, .*spr",
    ),
    "median 0": (lambda: BASE.with_prior("read_weights", a=0.0), "a = 0.0: must be a fin.*above 0"),
    "negative": (lambda: BASE.with_prior("read_weights", a=-1.0), "Prior read_weights: a"),
    "no width": (
        lambda: BASE.with_prior("read_weights", b=0.0),
        "b = 0.0: must be a finite number above 0",
    ),
    "infinite": (
        lambda: BASE.with_prior("read_weights", b=np.inf),
        "b = inf: must be a finite number above 0",
    ),
    "text": (lambda: BASE.with_prior("read_weights", a="x"), "a = 'x': must be a finite number"),
    "kind": (lambda: BASE.with_prior("run_sd", kind="normal"), "cannot change 'kind', only a, b"),
    "half-normal": (
        lambda: Prior("x", "halfnormal", 0.0, 0.3, "s", "", ""),
        "kind = 'halfnormal': must be one of lognormal, normal",
    ),
    "server effects": (lambda: LatencyModel(server_effects=("crowding",)), "server_effects = "),
    "pooling": (lambda: LatencyModel(pooling="some"), "pooling = 'some': must be one of partial"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_impossible_model_is_refused_in_one_sentence(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"seed": -1}, "seed = -1: must be a whole number"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"seed": True}, "seed = True"),
        ({"seed": 2**32}, "seed = "),
        ({"draws": 0}, "draws = 0: must be a whole number of at least 1"),
        ({"tune": 1.5}, "tune = 1.5"),
        ({"chains": True}, "chains = True"),
        ({"target_accept": 1.0}, "target_accept = 1.0: must be between 0 and 1"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_runs(
    runs: Runs, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        LatencyModel().fit(runs, **setting)


def test_what_is_fitted_comes_from_read() -> None:
    with pytest.raises(InputError, match="runs = list: must come from"):
        LatencyModel().fit([])  # type: ignore[arg-type]


@pytest.mark.sample
@pytest.mark.parametrize(
    ("setting", "has", "lacks"),
    [
        ({}, {"log_verifier", "log_server", "scatter_server", "moe_effect"}, set()),
        ({"pooling": "none"}, {"log_verifier", "scatter_server"}, {"scatter_verifier"}),
        ({"pooling": "complete"}, {"moe_effect"}, {"scatter_server", "log_server"}),
        ({"server_effects": ("slowness",)}, {"log_server"}, set()),
    ],
)
def test_settings_choose_what_is_sampled(
    runs: Runs, setting: dict[str, Any], has: set[str], lacks: set[str]
) -> None:
    design = build_design(runs.select(verifier=["moe-e8k2", "dense-25m"]))
    free = {variable.name for variable in LatencyModel(**setting).graph(design).free_RVs}
    assert has | {"log_law", "log_noise"} <= free and not lacks & free
    assert not {"log_environment", "scatter_machine"} & free


@pytest.mark.sample
@pytest.mark.parametrize("verifier", ["dense-25m", "moe-e8k2"])
def test_what_one_verifier_cannot_tell_is_not_sampled(runs: Runs, verifier: str) -> None:
    design = build_design(runs.select(verifier=verifier, drafter=["none", "draft-3m"]))
    free = {variable.name for variable in LatencyModel().graph(design).free_RVs}
    assert free == {"log_law", "log_noise", "scatter_server", "log_server"}
    plain = build_design(runs.select(verifier=verifier, drafter="none"))
    assert {variable.name for variable in LatencyModel().graph(plain).free_RVs} == {
        "log_law",
        "log_noise",
    }
