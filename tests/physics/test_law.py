"""The law: equations written out, limits, identities, parts, units, and two array libraries."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from closed_forms import latency_open
from hypothesis import given, settings
from hypothesis import strategies as st
from law_inputs import FACTORS, RATIOS, SIZES, TERMS, TIMES, WORK, rate_at, says
from scipy.optimize import brentq

from bayes_sd.errors import InputError
from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.costs import Stages, draft_passes
from bayes_sd.physics.law import DEFAULT, FULL, PARTS, Law, outcome
from bayes_sd.physics.structures import PREFILL

modest = settings(max_examples=60, deadline=None)
families = st.sampled_from(["dense", "moe"])
each_family = pytest.mark.parametrize("family", ["dense", "moe"])
shares = st.floats(0, 0.99)
seconds = st.floats(1e-3, 10)


def by_hand(t: dict[str, float], size: dict[str, float], work: dict[str, float]) -> float:
    """Mean latency from equations (2) and (4) written out, its fixed point by bisection."""
    a, d, k, n = size["active"], size["drafter"], work["k"], work["cycles"]
    p, g = work["prompt_tokens"], work["output_tokens"]
    tokens = (p + p**2 / t["attention_tokens"]) / (1 + 512 / t["attention_tokens"])
    prefill = size["layers"] * t["overhead_prefill_alone"] + t["prefill_token_alone"] * a * tokens
    alone = prefill * t["factor_prefill_alone"] + t["prefill_token_alone"] * d * tokens
    draft = (t["overhead_draft_alone"] + t["weights_per_pass"] * d) * t["factor_draft_alone"]
    more = size["layers"] * t["overhead_prefill_others"] + t["prefill_token_others"] * a * tokens
    more = more * t["factor_prefill_others"] + t["prefill_token_others"] * d * tokens
    token = t["decode_token_ratio"] * t["prefill_token_others"]
    reading = size["kv_gb"] / 4.096e-6 * (p + g / 2) / t["context_tokens"]
    beside = t["overhead_verify_others"] * (size["layers"] + reading)
    beside /= 1 + 1000 / t["context_tokens"]
    verify = (beside + (k + 1) * token * a) * t["factor_verify_others"]
    drafts = (t["overhead_draft_others"] + token * d) * t["factor_draft_others"]
    more = (more + n * (verify + k * drafts)) * t["factor_slowness"] * t["factor_crowding"]

    def gap(latency: float) -> float:
        b = work["rate_rps"] * latency
        weights = size["shared"] + size["expert"] * (1 - size["idle"] ** ((k + 1) * (1 + b)))
        passes = size["layers"] * t["overhead_verify_alone"] + t["weights_per_pass"] * weights
        passes = passes * t["factor_verify_alone"] + k * token * a * t["factor_verify_others"]
        return t["factor_slowness"] * (alone + n * (passes + k * draft)) + b * more - latency

    return float(brentq(gap, 0.0, 1e7, xtol=1e-12, rtol=1e-13))


@modest
@given(
    family=families,
    share=shares,
    k=st.integers(0, 10),
    alpha=st.floats(0, 1),
    prompt=st.floats(1, 4000),
    output=st.floats(1, 2000),
)
def test_the_law_is_that_of_the_equations(
    family: str, share: float, k: int, alpha: float, prompt: float, output: float
) -> None:
    work = {"k": k, "cycles": cycles(output, [alpha] * k, k)}
    work |= {"prompt_tokens": prompt, "output_tokens": output}
    work["rate_rps"] = rate_at(family, share, **work)
    expected = by_hand(TERMS, SIZES[family], WORK | work)
    assert says(family, **work).e2e_s == pytest.approx(expected, rel=1e-6)


@modest
@given(family=families, share=st.floats(0.01, 0.99))
def test_shares_and_identities_of_an_offered_rate(family: str, share: float) -> None:
    rate = rate_at(family, share)
    said = says(family, rate_rps=rate)
    assert said.others == pytest.approx(rate * said.e2e_s, rel=1e-6)  # Little
    assert said.e2e_s == pytest.approx(latency_open(said.c1_s, said.c2_s, rate), rel=1e-6)
    assert said.utilization == pytest.approx(share)
    assert said.others_share == pytest.approx(share, rel=1e-6)
    assert said.growth == pytest.approx(share / (1 - share), rel=1e-6)
    assert 0 < said.ttft_s < said.e2e_s
    assert said.mean_s("tpot", 128.0) == pytest.approx((said.e2e_s - said.ttft_s) / 127)


@modest
@given(family=families, at=st.lists(shares, min_size=2, max_size=5))
def test_latency_and_ttft_grow_with_the_rate(family: str, at: list[float]) -> None:
    said = [says(family, rate_rps=rate_at(family, share)) for share in sorted(at)]
    for low, high in pairwise(said):
        assert low.e2e_s <= high.e2e_s * (1 + 1e-9)
        assert low.ttft_s <= high.ttft_s * (1 + 1e-9)
    assert said[0].e2e_s >= says(family).e2e_s


@each_family
def test_no_latency_past_the_pole_is_finite_and_the_soft_one_is(family: str) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        past = says(family, rate_rps=np.float64(rate_at(family, 1.2)))
    assert not np.isfinite(past.e2e_s)
    soft = says(family, softness=0.01, rate_rps=rate_at(family, 1.2))
    assert np.isfinite(soft.e2e_s)
    assert soft.e2e_s > says(family, rate_rps=rate_at(family, 0.99)).e2e_s


@each_family
def test_a_concurrency_is_the_rate_that_keeps_it_in_flight(family: str) -> None:
    rate = says(family, rate_rps=rate_at(family, 0.6))
    fixed = says(family, closed=1.0, others=rate.others)
    assert fixed.e2e_s == pytest.approx(rate.e2e_s, rel=1e-6)
    assert fixed.e2e_s == pytest.approx(fixed.c1_s + fixed.others * fixed.c2_s)
    assert fixed.utilization == 0


@pytest.mark.parametrize("closed", [0.0, 1.0], ids=["open", "closed"])
def test_growth_is_what_an_error_of_c2_does_to_the_latency(closed: float) -> None:
    load = {"closed": closed, "others": 40.0 * closed}
    load["rate_rps"] = 0.0 if closed else rate_at("dense", 0.8)
    step, work = 1e-6, WORK | load
    said = says("dense", **load)
    terms = TERMS | {"factor_crowding": TERMS["factor_crowding"] * (1 + step)}
    stages = FULL.stages(terms, SIZES["dense"], work)
    more = outcome(stages, TERMS["queue_cycles"], SIZES["dense"], work)
    assert said.growth == pytest.approx(np.log(more.e2e_s / said.e2e_s) / step, rel=1e-3)


@modest
@given(family=families, share=shares, unit=st.floats(0.01, 99))
def test_another_unit_of_time_changes_nothing_but_the_unit(
    family: str, share: float, unit: float
) -> None:
    rate = rate_at(family, share)
    said, work = says(family, rate_rps=rate), WORK | {"rate_rps": rate / unit}
    terms = {n: v * unit for n, v in TIMES.items()} | RATIOS | FACTORS
    stages = FULL.stages(terms, SIZES[family], work)
    scaled = outcome(stages, TERMS["queue_cycles"], SIZES[family], work)
    for name, value in said._asdict().items():
        expected = value * unit if name.endswith("_s") else value
        # Near the pole 1 - x loses digits.
        assert getattr(scaled, name) == pytest.approx(expected, rel=1e-9, abs=1e-15), name


@each_family
def test_a_plain_server_pays_nothing_for_drafting_and_an_idle_drafter_its_first_pass(
    family: str,
) -> None:
    work = WORK | {"k": 0, "draft_passes": 0, "cycles": 127.0, "rate_rps": 0.5}
    size = SIZES[family] | {"drafter": 0.0}

    def c1(terms: dict[str, float], **changes: Any) -> float:
        w = work | changes
        stages = FULL.stages(terms, size, w)
        return float(outcome(stages, terms["queue_cycles"], size, w).c1_s)

    dear = TERMS | dict.fromkeys(("overhead_draft_alone", "factor_draft_alone"), 9.0)
    assert c1(dear) == c1(TERMS)
    assert c1(TERMS, draft_passes=draft_passes(0, 1)) > c1(TERMS)


# --- parts ----------------------------------------------------------------------------------

MOVES = {  # the stage costs that a part may change
    "host": {*PREFILL, "verify_alone", "verify_others"},
    "depth": {*PREFILL, "verify_alone", "verify_others"},
    "experts": {"verify_alone", "experts"},
    "tokens": {"verify_alone", "verify_others", "tile_token"},
    "context": {"verify_others"},
    "attention": set(PREFILL),
    "drafting": {"draft_others"},
    "stalls": {"prefill_ahead"},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_moves_only_its_own_stages(part: str) -> None:
    rest = tuple(p for p in PARTS if p not in (part, "context" if part == "depth" else part))
    work = WORK | {"prompt_tokens": 1500.0}
    without, with_it = (Law(p).stages(TERMS, SIZES["moe"], work) for p in (rest, (*rest, part)))
    moved = {n for n in Stages._fields if getattr(without, n) != getattr(with_it, n)}
    assert moved and moved <= MOVES[part]


def test_the_papers_law_is_linear_in_size_and_has_its_closed_form() -> None:
    law, work = Law(("host",)), WORK | {"rate_rps": 0.3}
    said = []
    for n in (4.0, 6.0, 8.0):
        size = SIZES["dense"] | {"active": n, "shared": n}
        stages = law.stages(TERMS, size, work)
        said.append(outcome(stages, TERMS["queue_cycles"], size, work, law=law))
    for name in ("c1_s", "c2_s"):
        small, middle, large = (getattr(each, name) for each in said)
        assert middle == pytest.approx((small + large) / 2) and middle > 0
    assert said[0].e2e_s == pytest.approx(latency_open(said[0].c1_s, said[0].c2_s, 0.3))


def test_stalls_only_say_when_the_others_prefills_are_waited_for() -> None:
    load = {"closed": 1.0, "others": 6.0}
    waiting = says("dense", Law(("depth", "tokens")), **load)
    stalling = says("dense", Law(("depth", "tokens", "stalls")), **load)
    assert waiting.e2e_s == stalling.e2e_s
    assert waiting.ttft_s > stalling.ttft_s > 0
    assert stalling.decode_s == stalling.e2e_s - stalling.ttft_s


def test_prompts_wait_for_each_other_where_a_concurrency_is_held_and_only_there() -> None:
    """Answers that end together are followed by prompts that come together: the mean ignores it."""
    size, work = SIZES["dense"], WORK | {"rate_rps": rate_at("dense", 0.5)}
    held = WORK | {"closed": 1.0, "others": 27.0}

    def ttft(load: dict[str, Any], ahead: float) -> tuple[float, float]:
        stages = FULL.stages(TERMS | {"prefills_ahead": ahead}, size, load)
        said = outcome(stages, TERMS["queue_cycles"], size, load)
        return said.ttft_s, said.e2e_s

    assert ttft(work, 0.0) == ttft(work, 1.0)
    (none, before), (all_of_them, after) = ttft(held, 0.0), ttft(held, 1.0)
    prefill_s = FULL.stages(TERMS, size, held).prefill_others
    assert all_of_them - none == pytest.approx(27 * prefill_s) and before == after


@pytest.mark.parametrize(
    ("parts", "tile", "message"),
    [
        (("expert",), 1.0, "'expert'; known: host, depth"),
        (("context",), 1.0, "needs 'depth'"),
        (("depth",), 128.0, "needs the part 'tokens'"),
        (DEFAULT, 0.0, "tile_tokens = 0.0: must lie between 1 and 4096"),
    ],
)
def test_an_impossible_law_is_refused(parts: tuple[str, ...], tile: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Law(parts, tile)


# --- one law, two libraries -----------------------------------------------------------------


@pytest.mark.sample
@each_family
def test_the_law_is_the_same_for_numpy_and_pytensor_and_detached(family: str) -> None:
    import pytensor
    import pytensor.tensor as pt
    from pytensor.gradient import disconnected_grad

    passes = np.array([0.0, 1.0, 5.0])
    work = WORK | {"k": passes, "draft_passes": passes, "cycles": np.array([127.0, 75.0, 41.0])}
    work |= {"closed": np.zeros(3), "others": np.zeros(3), "rate_rps": np.zeros(3)}

    def numbers(terms: dict[str, Any], load: Any, detach: Any = None) -> Any:
        stages = FULL.stages(terms, SIZES[family], load)
        return outcome(stages, terms["queue_cycles"], SIZES[family], load, 0.01, detach)

    work["rate_rps"] = np.array([0.0, 0.3, 0.9]) / numbers(TERMS, work).c2_s
    symbols = {n: pt.dvector(n) for n, v in work.items() if np.ndim(v)}
    terms = {n: pt.dscalar(n) for n in TERMS}
    free, detached = (numbers(terms, work | symbols, d) for d in (None, disconnected_grad))
    slopes = [
        pytensor.grad(each.e2e_s.sum(), terms["weights_per_pass"]) for each in (free, detached)
    ]
    run = pytensor.function(
        [*symbols.values(), *terms.values()],
        [*free, *detached, *slopes],
        mode="FAST_COMPILE",
        on_unused_input="ignore",
    )
    *values, slope, slope_detached = run(*(work[n] for n in symbols), *TERMS.values())
    expected = numbers(TERMS, work)
    for i, (name, value) in enumerate(expected._asdict().items()):
        np.testing.assert_allclose(values[i], value, rtol=1e-12, err_msg=name)
        np.testing.assert_array_equal(values[i], values[i + len(expected)], err_msg=name)
    size = TERMS["weights_per_pass"]
    low, high = (
        numbers(TERMS | {"weights_per_pass": size * (1 + s)}, work).e2e_s.sum()
        for s in (-1e-6, 1e-6)
    )
    assert slope == pytest.approx((high - low) / (2e-6 * size), rel=1e-6)
    assert slope_detached == pytest.approx(slope, rel=1e-9)
