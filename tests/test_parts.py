"""Parts of the law: each does what it says, none changes what it does not name."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_physics import LOAD, SIZES, THETA

import bayes_sd as bsd
from bayes_sd.physics import (
    Stages,
    combine,
    cycles,
    cycles_variance,
    latency_open,
    tokens_in_pass,
)
from bayes_sd.physics.costs import DEFAULT, PARTS, Law
from bayes_sd.physics.law import latency_at_rate, outcome, system_stages
from bayes_sd.physics.tails import counted
from bayes_sd.physics.tiles import RAMP, computed_slope, computed_tokens, free_tokens

modest = settings(max_examples=60, deadline=None)
MOVES = {  # the stage costs a part may change
    "host": {"c1_prefill", "c2_prefill", "c1_verify", "c2_verify"},
    "depth": {"c1_prefill", "c2_prefill", "c1_verify", "c2_verify"},
    "experts": {"c1_verify", "c1_experts"},
    "tokens": {"c1_verify", "c2_verify", "token"},
    "context": {"c2_verify"},
    "attention": {"c1_prefill", "c2_prefill"},
    "drafting": {"c2_draft"},
    "stalls": set(),
}


def stages(parts: tuple[str, ...], tile: float = 1.0, **load: Any) -> Stages:
    return Law(parts, tile).stages(THETA, SIZES["moe"], LOAD | load)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_moves_only_its_own_stages(part: str) -> None:
    rest = tuple(p for p in PARTS if p not in (part, "context" if part == "depth" else part))
    without, full = (stages(p, prompt_tokens=1500.0) for p in (rest, (*rest, part)))
    moved = {n for n in Stages._fields if getattr(without, n) != getattr(full, n)}
    assert moved <= MOVES[part]
    assert moved or part == "stalls"


def test_the_papers_law_is_linear_and_has_its_closed_form() -> None:
    law = Law(("host",))
    load = LOAD | {"rate_rps": 0.3}
    small, large = (
        outcome(THETA, SIZES["dense"] | {"active": n, "shared": n}, load, law=law)
        for n in (4.0, 8.0)
    )
    middle = outcome(THETA, SIZES["dense"] | {"active": 6.0, "shared": 6.0}, load, law=law)
    for name in ("c1_s", "c2_s"):
        ends = getattr(small, name) + getattr(large, name)
        assert getattr(middle, name) == pytest.approx(ends / 2)
        assert ends > 0
    assert small.e2e_s == pytest.approx(float(latency_open(small.c1_s, small.c2_s, 0.3)))


def test_stalls_only_say_when_the_others_prefills_are_waited_for() -> None:
    load = LOAD | {"closed": 1.0, "others": 6.0}
    stalling = outcome(THETA, SIZES["dense"], load)
    waiting = outcome(THETA, SIZES["dense"], load, law=Law(("depth", "tokens")))
    without = outcome(THETA, SIZES["dense"], load, law=Law(("depth", "tokens", "stalls")))
    assert waiting.e2e_s == without.e2e_s
    assert waiting.ttft_s > without.ttft_s > 0
    assert stalling.decode_s == stalling.e2e_s - stalling.ttft_s


@pytest.mark.parametrize(
    ("parts", "tile", "says"),
    [
        (("expert",), 1.0, "expert"),
        (("context",), 1.0, "depth"),
        (("depth",), 128.0, "tokens"),
        (DEFAULT, 0.0, "tile_tokens"),
    ],
)
def test_an_impossible_law_is_refused(parts: tuple[str, ...], tile: float, says: str) -> None:
    with pytest.raises(bsd.InputError, match=says):
        Law(parts, tile)


# --- tiles ----------------------------------------------------------------------------------


@modest
@given(tokens=st.floats(1, 2000), tile=st.sampled_from([8.0, 64.0, 128.0]))
def test_computed_tokens_are_whole_tiles_beyond_the_first(tokens: float, tile: float) -> None:
    found = computed_tokens(tokens, tile)
    whole = tile * (np.ceil(tokens / tile) - 1)
    assert abs(found - whole) <= tile
    away = abs(tokens / tile - round(tokens / tile)) > RAMP / 2
    if away or tokens < tile / 2:
        assert found == pytest.approx(whole, abs=1e-9)
    assert -tile <= free_tokens(tokens, tile) <= tile


@modest
@given(tokens=st.floats(1, 2000))
def test_the_slope_of_computed_tokens_is_its_derivative(tokens: float) -> None:
    step = 1e-5
    rise = computed_tokens(tokens + step, 128) - computed_tokens(tokens - step, 128)
    assert computed_slope(tokens, 128) == pytest.approx(rise / (2 * step), abs=1e-2)


def test_a_pass_below_one_tile_has_no_arithmetic_and_above_it_jumps() -> None:
    law = Law(tile_tokens=128)
    cost = [
        outcome(THETA, SIZES["dense"], LOAD | {"closed": 1.0, "others": n}, law=law).e2e_s
        for n in (0.0, 20.0, 26.0, 37.0, 45.0)
    ]
    slopes = np.diff(cost) / np.diff([0.0, 20.0, 26.0, 37.0, 45.0])
    assert slopes[0] == pytest.approx(slopes[1])  # 4 to 108 tokens
    assert slopes[2] > 1.5 * slopes[1]  # past 128


@pytest.mark.parametrize("family", ["dense", "moe"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_the_number_in_flight_solves_littles_law_with_tiles(family: str, share: float) -> None:
    law = Law(tile_tokens=16)
    capacity = float(outcome(THETA, SIZES[family], LOAD, law=law).c2_s)
    found = outcome(THETA, SIZES[family], LOAD | {"rate_rps": share / capacity}, law=law)
    assert found.in_flight == pytest.approx(share / capacity * found.e2e_s, rel=1e-6)
    plain = outcome(THETA, SIZES[family], LOAD | {"rate_rps": share / capacity})
    assert found.e2e_s < plain.e2e_s  # some tokens ride free


@pytest.mark.parametrize("family", ["dense", "moe"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_measured_tokens_stand_in_for_those_of_the_fixed_point(family: str, share: float) -> None:
    law = Law(tile_tokens=16)
    rate = share / float(outcome(THETA, SIZES[family], LOAD, law=law).c2_s)
    found = outcome(THETA, SIZES[family], LOAD | {"rate_rps": rate}, law=law)
    measured = {"pass_tokens": tokens_in_pass(found.in_flight, LOAD["k"])}
    again = outcome(THETA, SIZES[family], LOAD | {"rate_rps": rate} | measured, law=law)
    for name in found._fields:
        assert getattr(again, name) == pytest.approx(getattr(found, name), rel=1e-6), name


def test_the_latency_at_a_rate_is_that_of_the_outcome() -> None:
    law = Law(tile_tokens=64)
    for family in ("dense", "moe"):
        load = LOAD | {"rate_rps": 0.2}
        stages = system_stages(THETA, SIZES[family], load, law)
        total = combine(stages, load["k"], load["cycles"])
        direct = latency_at_rate(total, SIZES[family], 0.2, LOAD["k"], law)
        assert direct == pytest.approx(outcome(THETA, SIZES[family], load, law=law).e2e_s)


# --- tails ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "k"), [(0.5, 1), (0.7, 4), (0.9, 7)])
def test_the_variance_of_cycles_is_that_of_drawn_requests(alpha: float, k: int) -> None:
    rng = np.random.default_rng(1)
    left, counts = np.full(20_000, 256), np.zeros(20_000)
    while (left > 0).any():
        accepted = np.cumprod(rng.random((len(left), k)) < alpha, axis=1).sum(axis=1)
        counts += left > 0
        left -= 1 + accepted
    assert counts.mean() == pytest.approx(cycles(257, [alpha] * k, k), rel=0.003)
    assert counts.var() == pytest.approx(cycles_variance(257, [alpha] * k, k), rel=0.06)


def test_accepted_and_requested_lengths_spread_latencies() -> None:
    load = LOAD | {"cycles_var": 0.0, "output_cv2": 0.0, "prompt_cv2": 0.0}
    law = outcome(THETA, SIZES["dense"], load)
    assert counted("e2e", law, load) == counted("tpot", law, load) == 0
    mixed = counted("e2e", law, load | {"output_cv2": 1.0})
    assert 0 < mixed < 1  # the prefill does not scale with the answer
    assert counted("ttft", law, load | {"output_cv2": 1.0}) == 0
    drafted = load | {"cycles_var": 9.0}
    assert counted("tpot", law, drafted) > counted("e2e", law, drafted) > 0
