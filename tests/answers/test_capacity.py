"""Capacity within a latency target: replicas, bills and who wins, checked by the rule itself."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from questions import MOE, NEW, PLAIN, SAMPLE, SHORT

from bayes_sd.answers.capacity import Capacity
from bayes_sd.answers.servers import Server
from bayes_sd.fit import Fit
from bayes_sd.runs.load import Load

THREE: dict[str, Server] = {"plain": PLAIN, "sd": SHORT, "moe": MOE}
STEADY = Load(rps=20.0, prompt=128, output=64)
CROWD = Load(concurrency=40, prompt=128, output=64)


def traffic(windows: Any = None, seconds: Any = 60.0) -> Load:
    """Three uneven windows, or those of a table."""
    if windows is None:
        windows = {"rate_rps": [8.0, 12.0, 3.0], "prompt_tokens": [128, 200, 90]}
        windows |= {"output_tokens": [64, 50, 90]}
    return Load.read(pd.DataFrame(windows).assign(seconds=seconds))


UNEVEN = traffic()


def ask(fit: Fit, load: Load = UNEVEN, servers: Any = THREE, **more: Any) -> Capacity:
    return fit.capacity(load, servers, **({"slo_s": 2.5} | more))


def rows(answer: Capacity) -> pd.DataFrame:
    return answer.table.set_index("server")


@pytest.mark.parametrize("load", [STEADY, CROWD], ids=["rate", "concurrency"])
def test_the_load_found_keeps_the_target_as_often_as_asked(fit: Fit, load: Load) -> None:
    """Against shares of drawn requests, which know no root finder."""
    answer = ask(fit, load, {"plain": PLAIN, "sd": SHORT}, slo_s=1.5, confidence=0.8)
    short = "rps" if load is STEADY else "concurrency"
    for row in answer.table.itertuples():
        at = getattr(row, f"max_{short}")
        near = load.with_axis([0.8 * at, at, 1.2 * at])
        draws = fit.latency(near, THREE[row.server], extrapolate=True).draws["request_s"]
        late = (draws > 1.5).mean(SAMPLE).values.ravel()
        assert late[0] < late[1] < late[2] and 0.005 < late[1] < 0.1  # p95 in 80% of draws
        assert row.replicas == math.ceil((20 if load is STEADY else 40) / at - 1e-9)


def test_looser_targets_and_less_confidence_allow_more(fit: Fit) -> None:
    def rate(slo_s: float, confidence: float = 0.9, percentile: float = 95.0) -> float:
        answer = ask(fit, STEADY, PLAIN, slo_s=slo_s, confidence=confidence, percentile=percentile)
        return float(answer.table["max_rps"].item())

    assert rate(1.0) < rate(2.0) < rate(10.0)
    assert rate(1.5, 0.95) < rate(1.5, 0.6)
    assert rate(1.5, 0.9, 99.0) < rate(1.5, 0.9, 90.0)


def test_neither_order_nor_cutting_of_windows_nor_repetition_matters(fit: Fit) -> None:
    """Neither of a few windows nor of so many that some are joined."""
    few, two = fit.thin(120), {"sd": SHORT, "moe": MOE}  # every draw keeps to it
    rng = np.random.default_rng(4)
    for n in (3, 60):
        lengths = {"prompt_tokens": rng.uniform(64, 300, n), "output_tokens": 64}
        w = pd.DataFrame({"rate_rps": rng.gamma(3, 2, n), **lengths, "seconds": 60.0})
        once = ask(few, Load.read(w), two).table.select_dtypes("number")
        for same in (w.iloc[::-1], pd.concat([w, w]), pd.concat([w, w]).assign(seconds=30.0)):
            again = ask(few, Load.read(same), two).table.select_dtypes("number")
            pd.testing.assert_frame_equal(once, again, rtol=1e-6, atol=1e-9)


def test_replicas_are_the_fewest_that_keep_the_target(fit: Fit) -> None:
    for name, row in rows(ask(fit)).iterrows():
        assert row["prob_kept"] >= 0.9 and row["replicas"] == row["needed"]
        if row["replicas"] > 1:
            fewer = ask(fit, replicas=int(row["replicas"]) - 1)
            assert rows(fewer)["prob_kept"][name] < 0.9
            assert f"{name} on" in str(fewer) and "needs" in str(fewer)


def test_time_without_requests_costs_and_changes_nothing_else(fit: Fit) -> None:
    idle = pd.DataFrame([{"rate_rps": 0.0, "seconds": UNEVEN.seconds}])
    longer = Load.read(pd.concat([UNEVEN.windows, idle], ignore_index=True))
    a, b = (ask(fit, load, price_per_hour=1.0).table for load in (UNEVEN, longer))
    assert a["replicas"].tolist() == b["replicas"].tolist()
    price = "price_per_million_tokens"
    np.testing.assert_allclose(2 * a[price], b[price])


def test_bills_are_those_of_the_replicas_and_tokens(fit: Fit) -> None:
    prices = {"plain": 1.0, "sd": 1.2, "moe": 0.5}
    table = rows(ask(fit, STEADY, price_per_hour=prices))
    np.testing.assert_allclose(table["per_hour"], table["replicas"] * pd.Series(prices))
    tokens = 20.0 * 64 * 3600
    np.testing.assert_allclose(table["price_per_million_tokens"], table["per_hour"] / tokens * 1e6)
    crowd = rows(ask(fit, CROWD, price_per_hour=prices))
    tokens = 40 / crowd["mean_p50_s"] * 64 * 3600
    price = crowd["per_hour"] / tokens * 1e6
    np.testing.assert_allclose(crowd["price_per_million_tokens"], price, rtol=0.01)


def test_spread_of_lengths_needs_more(fit: Fit) -> None:
    lengths = {"rate_rps": [20.0], "prompt_tokens": 128, "output_tokens": 64}
    same, wide = traffic(lengths), traffic(lengths | {"output_tokens_sd": 40.0})
    a, b = (ask(fit, load).table["max_rps"] for load in (same, wide))
    assert (b < a).all()


def test_chances_sum_and_pairs_agree_whatever_the_order(fit: Fit) -> None:
    prices = {"plain": 1.0, "sd": 1.2, "moe": 0.5}
    answer = ask(fit, price_per_hour=prices)
    table, beats = rows(answer), answer.beats
    assert table["prob_best"].sum() + answer.prob_all_saturated == pytest.approx(1)
    assert table["prob_cheapest"].sum() == pytest.approx(1)
    assert (table[["regret_ms", "regret_per_hour"]] >= 0).all(axis=None)
    assert beats.loc["sd", "plain"] + beats.loc["plain", "sd"] == pytest.approx(1)
    for name in THREE:  # nobody is best more often than it beats any one of the others
        assert table["prob_best"][name] <= beats.loc[name].min() + 1e-9
    assert "cheapest" in str(answer) and "p95 <= 2.5 s" in str(answer)
    back = ask(fit, servers=dict(reversed(THREE.items())), price_per_hour=prices)
    pd.testing.assert_frame_equal(table, rows(back).loc[list(THREE)])
    assert str(back) == str(answer)


def test_equal_servers_share_the_first_place_and_draws_are_shared(fit: Fit) -> None:
    table = ask(fit, servers={"one": SHORT, "two": SHORT}).table
    assert table["prob_best"].tolist() == [0.5, 0.5] and (table["regret_ms"] == 0).all()
    better = Server(NEW.verifier, NEW.drafter, NEW.k, 0.9)  # the same unknown model
    answer = ask(fit, STEADY, {"a": NEW, "b": better}, replicas=40)
    assert answer.beats.loc["b", "a"] == 1
    assert ask(fit, STEADY, [PLAIN, SHORT]).table["server"].tolist() == [str(PLAIN), str(SHORT)]


def test_a_target_below_the_idle_latency_is_impossible_with_the_number(fit: Fit) -> None:
    answer = ask(fit, slo_s=0.05, price_per_hour=1.0)
    table = answer.table
    empty = [
        "max_rps",
        "replicas",
        "per_hour",
        "mean_p50_s",
        "regret_ms",
        "price_per_million_tokens",
    ]
    assert table[empty].isna().all(axis=None)
    assert (table["prob_possible"] == 0).all() and (table["idle_s"] > 0.05).all()
    assert str(answer).count("impossible at any load") == 3
    assert f"its p95 is about {table['idle_s'][0]:.3g} s" in str(answer)


def test_one_impossible_server_leaves_the_others_to_compare(fit: Fit) -> None:
    idle = rows(ask(fit, STEADY))["idle_s"]
    answer = ask(fit, STEADY, slo_s=float(idle["sd"] * 1.15))
    table = rows(answer)
    assert math.isnan(table["replicas"]["plain"]) and table["replicas"]["sd"] >= 1
    assert table["prob_best"].sum() + answer.prob_all_saturated == pytest.approx(1)
    assert answer.beats.loc["plain"].isna().all() and "plain: p95" in str(answer)


def test_a_load_beyond_every_server_says_so_and_has_no_price(fit: Fit) -> None:
    answer = ask(fit, Load(rps=400.0, prompt=128, output=64), replicas=1, price_per_hour=1.0)
    table = answer.table
    assert answer.prob_all_saturated > 0.99 and table["prob_saturated"].gt(0.99).all()
    assert "Every server is past capacity" in str(answer) and "is kept by none" in str(answer)
    assert table["needed"].gt(1).all()
    assert table[["price_per_million_tokens", "prob_cheapest"]].isna().all(axis=None)


def test_a_peak_that_may_saturate_is_mentioned(fit: Fit) -> None:
    windows = {"rate_rps": [20.0, 900.0], "prompt_tokens": 128, "output_tokens": 64}
    answer = ask(fit, traffic(windows, seconds=[3600.0, 1.0]))  # one request in a hundred late
    assert answer.table["prob_saturated"].gt(0.99).all() and answer.table["prob_kept"].ge(0.9).all()
    assert "past capacity in some window" in str(answer) and "is kept by plain on" in str(answer)
