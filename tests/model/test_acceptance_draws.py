"""Acceptance from counts by position, from totals, imposed, and at positions nobody measured."""

from typing import Any

import numpy as np
import pytest
from tables import DRAFTING, closed, table

from bayes_sd.model.acceptance import acceptance_draws, at_positions
from bayes_sd.model.design import build_design
from bayes_sd.physics.acceptance import tokens_per_cycle
from bayes_sd.runs.schema import Runs

PAIR = {"verifier": "m", "drafter": "d", "acceptance_imposed": np.nan, "workload": ""}


def rates(runs: Runs, k: int, pair: dict[str, Any] = PAIR) -> np.ndarray:
    """Draws (position, draw) of acceptance at `k` positions."""
    group = acceptance_draws(build_design(runs).table, (4, 500), seed=1)
    positions, _ = at_positions(group, pair, k, seed=0)
    assert positions is not None
    return np.stack(positions)[:, :, 0]


def counted(*accepted: float, drafts: float = 1000.0, **columns: Any) -> Runs:
    """One run whose accepted tokens were counted by position."""
    by_position = {f"accepted_{j}": n for j, n in enumerate(accepted, start=1)}
    columns = {"rate_rps": 0.5, "e2e_mean_s": 1.0, "drafts": drafts} | by_position | columns
    return table(DRAFTING, draft_tokens=len(accepted), accepted_tokens=sum(accepted), **columns)


def test_counts_by_position_are_a_chain_of_binomials() -> None:
    draws = rates(counted(900, 540, 162, drafts=1000), 3)
    for j, (mean, tried) in enumerate([(0.9, 1000), (0.6, 900), (0.3, 540)]):
        assert draws[j].mean() == pytest.approx(mean, abs=0.01)
        assert draws[j].std() == pytest.approx(np.sqrt(mean * (1 - mean) / tried), rel=0.15)


def test_totals_without_positions_tell_the_tokens_of_a_cycle() -> None:
    runs = table(DRAFTING, rate_rps=0.5, e2e_mean_s=1.0, drafts=1000.0, accepted_tokens=2100.0)
    tokens = tokens_per_cycle(list(rates(runs, 3)), 3)
    assert tokens.mean() == pytest.approx(3.1, abs=0.05)
    assert tokens.std() < 0.05


def test_workloads_of_one_server_keep_their_own_acceptance() -> None:
    """Mathematics is drafted well, chat is not: together they are neither."""
    runs = counted(900, 810, workload="math") + counted(300, 90, workload="chat")
    design = build_design(runs)
    assert design.servers["server"].tolist() == ["m + d k=2, chat", "m + d k=2, math"]
    for name, rate in (("math", 0.9), ("chat", 0.3)):
        assert rates(runs, 2, PAIR | {"workload": name}).mean() == pytest.approx(rate, abs=0.02)


def test_totals_of_many_runs_are_added_up() -> None:
    """93,800 cycles and 178,220 accepted tokens at k = 5: an acceptance of 0.6935 +- 0.001."""
    runs = closed(
        DRAFTING,
        draft_tokens=5,
        concurrency=[1, 8, 32],
        drafts=[5700.0, 14200.0, 73900.0],
        accepted_tokens=[10830.0, 26980.0, 140410.0],
    )
    draws = rates(runs, 5)
    assert tokens_per_cycle(list(draws), 5).mean() == pytest.approx(2.9, abs=0.01)
    assert draws.mean() == pytest.approx(0.6935, abs=0.003)
    # Trials at the first position; later ones have fewer.
    assert draws[0].std() == pytest.approx(np.sqrt(0.6935 * 0.3065 / 93_800), rel=0.1)


def test_positions_nobody_measured_go_on_falling_and_are_uncertain() -> None:
    measured = counted(900, 540, 162, drafts=1000)
    draws = rates(measured, 5)
    mean, sd = draws.mean(axis=1), draws.std(axis=1)
    assert mean[3] < 0.3 and mean[4] < 0.3 and mean[4] < mean[3]
    assert sd[3] > 0.05 and sd[3] > 3 * sd[2]
    np.testing.assert_array_equal(draws[:3], rates(measured, 3))


def test_an_imposed_rate_without_counts_is_certain_and_equal_everywhere() -> None:
    draws = rates(table(DRAFTING, acceptance_imposed=0.7), 5, PAIR | {"acceptance_imposed": 0.7})
    assert (draws == 0.7).all()


def test_few_cycles_leave_a_wide_acceptance_and_none_none() -> None:
    few, many = (rates(counted(8 * n, 4 * n, drafts=10 * n), 2)[0].std() for n in (1, 100))
    assert few > 3 * many
    runs = counted(900, 540)
    group = acceptance_draws(build_design(runs).table, (2, 10), seed=1)
    assert at_positions(group, PAIR | {"drafter": "another"}, 2, seed=0) is None


def test_a_run_that_drafted_less_does_not_dilute_later_positions() -> None:
    short = counted(900, drafts=1000)
    long = counted(900, 540, 162, drafts=1000)
    draws = rates(short + long, 3)
    assert draws.mean(axis=1) == pytest.approx([0.9, 0.6, 0.3], abs=0.02)
    assert draws[0].std() < rates(long, 3)[0].std()
