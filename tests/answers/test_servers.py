"""Which server a question is about: names, sizes, acceptance, environments, structures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from questions import ELSEWHERE, NEW, PLAIN, SD, changed, law, renamed, rps, with_two_environments

from bayes_sd.answers.servers import Server, resolve
from bayes_sd.errors import InputError
from bayes_sd.fit import Fit
from bayes_sd.model.priors import DRAFTER_COSTS, ELSEWHERE_SD, SERVER_EFFECTS, VERIFIER_COSTS
from bayes_sd.physics.structures import Disaggregated, Edge
from bayes_sd.runs.sizes import Size


def mean_s(fit: Fit, server: Server, **more: Any) -> np.ndarray:
    return fit.latency(rps(1.0), server, **more).draws["mean_s"].values.ravel()


# --- names ----------------------------------------------------------------------------------


def test_a_name_with_an_at_sign_keeps_the_acceptance_that_was_given(fit: Fit) -> None:
    odd = renamed(fit, {"dense-60m": "org/dense@0.8 k=5", "draft-12m": "draft@12m [gpu]"})
    pair = Server("org/dense@0.8 k=5", "draft@12m [gpu]", k=5)
    np.testing.assert_array_equal(mean_s(odd, pair), mean_s(fit, SD))
    for given in (0.3, [0.9, 0.5, 0.3, 0.2, 0.1]):
        told, same = (replace(each, acceptance=given) for each in (pair, SD))
        rates = resolve(odd, told).acceptance
        assert rates == list(np.broadcast_to(given, 5))
        ratio = mean_s(odd, told) / mean_s(odd, pair)
        assert np.median(ratio) > 1.2 and np.median(mean_s(fit, same)) > 1.2 * np.median(
            mean_s(fit, SD)
        )


def test_a_drafter_of_more_layers_costs_their_overheads(fit: Fit) -> None:
    """One that says nothing of its layers has one, as a head has."""
    head, deep = (Server("dense-60m", Size(10e6, layers=n), 5, 0.8) for n in (None, 4))
    said = {s: resolve(fit, s).sizes["drafter_layers"] for s in (head, deep)}
    assert list(said.values()) == [1.0, 4.0]
    more_s = mean_s(fit, deep) - mean_s(fit, head)
    draft_s = fit.posterior["law"].sel(law_term="overhead_draft_alone").values.ravel()
    assert np.median(more_s) > 3 * np.median(draft_s)  # in every cycle, of which there are several


def test_a_head_asked_for_another_verifier_has_the_size_of_its_own(fit: Fit) -> None:
    """Heads called by their method are one for each verifier; the one that ran is of its own."""
    heads = renamed(fit, {"dense-60m": "Qwen3-8B", "draft-12m": "eagle3"})
    ran, other = (resolve(heads, Server(v, "eagle3", 5, 0.8)) for v in ("Qwen3-8B", "Qwen3-14B"))
    assert ran.sizes["drafter"] == fit.drafters.loc["draft-12m", "drafter_params"]
    assert 1e9 * other.sizes["drafter"] == Size.drafter("eagle3", "Qwen3-14B").params


def test_a_new_server_is_answered_wider_and_never_called_measured(fit: Fit) -> None:
    new = Server(Size(61726720.0), Size(10616832.0), 5, 0.8)
    moe = Server(Size(212398080.0, 75e6, 8, 2), Size(10616832.0), 1, 0.8)
    for guess, known in ((new, SD), (moe, Server("moe-e8k2", "draft-12m", 1, 0.8))):
        wide, narrow = (np.log(mean_s(fit, each)) for each in (guess, known))
        assert wide.std() > 1.3 * narrow.std()
        assert 0.5 < np.exp(np.median(wide) - np.median(narrow)) < 2
        assert "measured" not in fit.latency(rps(1.0), guess).table["support"].tolist()


def test_effects_of_a_new_server_are_draws_of_its_population(fit: Fit) -> None:
    moe = Server(Size(212398080.0, 75e6, 8, 2), Size(1e7), 3, 0.8)
    terms = resolve(fit, moe, seed=1).coefficients
    levels = {"verifier": VERIFIER_COSTS, "drafter": DRAFTER_COSTS, "server": SERVER_EFFECTS}
    for level, effects in levels.items():
        for i, effect in enumerate(effects):
            log = np.log(terms[f"factor_{effect}"][:, 0])
            log = log - (fit.moe_effect[:, i] if level == "verifier" else 0.0)
            z = log / fit.scatter(level)[:, i]
            assert abs(z.mean()) < 0.2 and z.std() == pytest.approx(1, abs=0.15), effect


def test_acceptance_by_position_is_used(fit: Fit) -> None:
    def c1(*rates: float) -> np.ndarray:
        return law(fit, Server("dense-60m", "draft-3m", 3, rates)).c1_s

    np.testing.assert_allclose(
        c1(0.9, 0.9, 0.9), law(fit, Server("dense-60m", "draft-3m", 3, 0.9)).c1_s
    )
    assert (c1(0.9, 0.5, 0.1) > c1(0.9, 0.9, 0.9)).all()
    assert (c1(0.9, 0.5, 0.1) < c1(0.9, 0.0, 0.9)).all()


def test_a_loaded_drafter_that_drafts_nothing_costs_its_pass(fit: Fit) -> None:
    assert (mean_s(fit, SD.with_k(0)) > mean_s(fit, PLAIN)).mean() > 0.5
    assert str(SD.with_k(0)) == "dense-60m + draft-12m, k = 0" and str(PLAIN) == "dense-60m, plain"


# --- environments ---------------------------------------------------------------------------


def test_an_environment_is_chosen_or_the_only_one(fit: Fit) -> None:
    two, here = with_two_environments(fit), fit.environments[0]
    with pytest.raises(InputError, match=r"dense-60m could run in 2 environments; choose one with"):
        two.latency(rps(1.0), PLAIN)
    with pytest.raises(InputError, match="no environment 'H100'; it knows .*; another machine"):
        two.latency(rps(1.0), replace(PLAIN, environment="H100"))
    assert np.isfinite(mean_s(two, Server("dense-25m"))).all()  # ran elsewhere only
    with pytest.raises(InputError, match="choose one"):
        two.latency(rps(1.0), NEW)
    slow, fast = (mean_s(two, replace(NEW, environment=e)) for e in (ELSEWHERE, here))
    assert np.median(slow / fast) > 1.2


def test_servers_of_a_model_share_how_far_it_is_off_where_it_never_ran(fit: Fit) -> None:
    two, here = with_two_environments(fit), fit.environments[0]
    servers = [replace(NEW, verifier="dense-25m", environment=here, k=k) for k in (1, 3)]
    slow = [resolve(two, s, started_anew="again").coefficients["factor_slowness"] for s in servers]
    np.testing.assert_array_equal(*slow)
    place = two.elsewhere_factor("dense-25m", here, 0)
    assert np.log(place).std() == pytest.approx(ELSEWHERE_SD, rel=0.05)
    anew = two.factors("server", None, "again of dense-25m", 0)[0]
    np.testing.assert_allclose(slow[0], anew * place)
    assert two.elsewhere_factor("dense-25m", ELSEWHERE, 0) == 1  # ran there
    assert two.elsewhere_factor("nobody measured", here, 0) == 1  # lies off the law by itself


def test_an_environment_that_only_saturated_keeps_its_factors(fit: Fit) -> None:
    """Its runs bound the latency from below, so its servers and hardware have their own draws."""
    two = with_two_environments(fit)
    runs = two.tree["runs"].to_dataset()
    stuck = runs["environment"].values.astype(str) == ELSEWHERE
    runs["saturated"] = ("run", stuck | runs["saturated"].values.astype(bool))
    only_stuck = changed(two, runs=runs)
    assert ELSEWHERE not in set(only_stuck.runs["environment"])
    assert ELSEWHERE in only_stuck.environments
    server = Server("dense-25m", environment=ELSEWHERE)
    there = resolve(only_stuck, server).coefficients
    unmoved = resolve(fit, Server("dense-25m")).coefficients
    factor = only_stuck.posterior["factor_environment"].sel(environment=ELSEWHERE)
    for name in map(str, factor["law_term"].values):
        expected = factor.sel(law_term=name).values.reshape(-1, 1)
        np.testing.assert_allclose(there[name] / unmoved[name], expected)
    np.testing.assert_array_equal(there["factor_slowness"], unmoved["factor_slowness"])
    untold = "overhead_parallel"
    np.testing.assert_array_equal(there[untold], unmoved[untold])
    np.testing.assert_array_equal(mean_s(only_stuck, server), mean_s(two, server))


# --- structures -----------------------------------------------------------------------------


def test_a_server_in_a_structure_has_a_name_of_its_own(fit: Fit) -> None:
    far = replace(SD, structure=Edge((0.01, 0.02)))
    assert str(far) == f"{SD}, edge:round_trip_s=0.01..0.02,slowdown=1,offloaded=1"
    answer = fit.latency(rps(0.5, 1.0), [SD, far])
    assert answer.draws.sizes["server"] == len(set(answer.table["server"])) == 2
    answer.plot()


def test_a_plain_server_is_changed_by_a_prefill_pool_only(fit: Fit) -> None:
    for structure, label in ((Edge(0.02), "measured"), (Disaggregated(0.01), "assumed structure")):
        placed = replace(PLAIN, structure=structure)
        assert fit.latency(rps(1.0), placed).table["support"].tolist() == [label]
        assert np.array_equal(mean_s(fit, placed), mean_s(fit, PLAIN)) == (label == "measured")
