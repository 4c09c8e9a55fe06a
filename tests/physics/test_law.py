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
from bayes_sd.physics import costs, queue
from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.costs import Stages, draft_passes
from bayes_sd.physics.law import DEFAULT, FULL, PARTS, Law, outcome, stay
from bayes_sd.physics.queue import coverage

modest = settings(max_examples=60, deadline=None)
families = st.sampled_from(["dense", "moe"])
each_family = pytest.mark.parametrize("family", ["dense", "moe"])
shares = st.floats(0, 0.99)
captured = st.sampled_from([8.0, 64.0, np.inf])


def by_hand(
    t: dict[str, float],
    m: dict[str, float],
    work: dict[str, float],
    concurrency: float = 0.0,
    room: float = 1.0,
) -> float:
    """Mean latency from the equations written out, at a rate by bisection.

    `room` is the share of capacity left there.
    """
    a, d, k, n, layers = m["active"], m["drafter"], work["k"], work["cycles"], m["layers"]
    p, g, slow = work["prompt_tokens"], work["output_tokens"], t["factor_slowness"]
    crowded = slow * t["factor_crowding"]
    gb, flop = 1 / m["gb_per_s"], 2e9 / (m["tflops"] * 1e12)  # s a GB; s a token and 1e9 parameters
    weights, keys = gb * m["bytes"] * t["read_weights"], gb * t["read_keys"]
    prompt_token = flop * t["prefill_token"]
    token = t["decode_token_ratio"] * prompt_token
    tokens = (p + p**2 / t["attention_tokens"]) / (1 + 512 / t["attention_tokens"])
    asked = slow * layers * t["overhead_prefill_alone"] * t["factor_prefill_alone"]
    other = crowded * layers * t["overhead_prefill_others"] * t["factor_prefill_others"]
    prompt = slow * prompt_token * (a * t["factor_prefill_others"] + d) * tokens
    prompts = prompt * t["factor_crowding"]
    each_layer = t["overhead_verify_alone"]
    each_layer += t["overhead_experts"] * m["moe"] + t["overhead_parallel"] * (m["dies"] > 1)
    launch = slow * (layers * each_layer + t["overhead_pass"]) * t["factor_verify_alone"]
    sequence = (k + 1) * layers * t["overhead_token"] + keys * m["kv_gb"] * 2**0.5 * (p + g / 2)
    sequence *= t["factor_verify_others"]
    draft = m["drafter_layers"] * t["overhead_draft_alone"]
    draft += gb * m["drafter_bytes"] * t["read_weights"] * d
    drafts = (t["overhead_draft_others"] + token * d) * t["factor_draft"] * crowded
    compute = (k + 1) * token * a * t["factor_verify_others"]
    pace = layers * (t["pace_experts"] if m["moe"] else t["pace_dense"]) * slow
    alone = slow * (sequence + work["draft_passes"] * draft * t["factor_draft"])

    stay = n + t["queue_cycles"]

    def latency(b: float, paced: bool) -> float:
        chosen = -np.log(m["idle"]) * (k + 1) * (1 + b)
        idle = (1 + chosen / t["uneven_experts"]) ** -t["uneven_experts"]
        read = weights * (m["shared"] + m["expert"] * (1 - idle)) * t["factor_verify_alone"] * slow
        decoding = b * n / stay  # the others wait for their first token
        computed = compute * (slow + decoding * crowded)

        def cycle_s(taken: float) -> float:
            verify = float(np.hypot(launch + read, computed + taken))
            each = sequence * crowded + work["draft_passes"] * drafts
            return alone + verify + decoding * each

        def taking_s(taken: float, long: float) -> float:
            return float(np.hypot(cycle_s(taken), long * pace))

        cycle = max(cycle_s(0.0), paced * pace)
        if concurrency:
            long = float(paced or p * (1 + b) > m["captured"])
            own, running = taking_s(prompt + b * prompts, long), cycle
        else:
            about = b and work["rate_rps"] * latency(0.0, False) / room  # equation (1)
            x, over = b / stay, (p - m["captured"]) / (k + 1) + about - 0.5
            passing = (1 + np.sin(np.arctan2(over, np.sqrt(about)))) / 2
            long = 1.0 if paced or p > m["captured"] else float(passing * (passing > 0.01))
            own, running = taking_s(prompt + x * prompts, long), cycle
            if x > 0:
                share = -np.expm1(-x)
                running += share * (taking_s(x / share * prompts, long) - cycle)
        return asked + b * other + own + (stay - 1) * running

    def beyond(b: float) -> bool:
        return (k + 1) * (1 + b) > m["captured"]

    def at_rate(paced: bool) -> float:
        rate = work["rate_rps"]
        return float(brentq(lambda s: latency(rate * s, paced) - s, 0, 1e7, xtol=1e-12, rtol=1e-13))

    if concurrency:
        return latency(concurrency - 1, beyond(concurrency - 1))
    captured = at_rate(False)
    return at_rate(True) if beyond(work["rate_rps"] * captured) else captured


MACHINES = {  # memory-bound to compute-bound, and passes within captured graphs and beyond
    "gb_per_s": st.floats(10, 8000),
    "tflops": st.floats(0.5, 2500),
    "dies": st.sampled_from([1.0, 8.0]),
    "bytes": st.sampled_from([0.5, 1.0, 2.0]),
    "drafter_layers": st.sampled_from([1.0, 28.0]),
    "captured": st.sampled_from([16.0, 64.0, 512.0, np.inf]),
}
LOADS = {
    "k": st.integers(0, 10),
    "prompt_tokens": st.floats(1, 4000),
    "output_tokens": st.floats(1, 2000),
}


@settings(max_examples=200, deadline=None)
@given(
    family=families,
    share=shares,
    alpha=st.floats(0, 1),
    machine=st.fixed_dictionaries(MACHINES),
    uneven=st.floats(0.1, 100),
    load=st.fixed_dictionaries(LOADS),
    crowd=st.floats(1, 500),
)
def test_the_law_is_that_of_the_equations(
    family: str,
    share: float,
    alpha: float,
    machine: dict[str, float],
    uneven: float,
    load: dict[str, Any],
    crowd: float,
) -> None:
    k = load["k"]
    work: dict[str, Any] = load | {"cycles": cycles(load["output_tokens"], [alpha] * k, k)}
    work |= {"draft_passes": draft_passes(k, alpha > 0.5)}
    how: dict[str, Any] = {"sizes": machine, "terms": {"uneven_experts": uneven}}
    terms, size = TERMS | how["terms"], SIZES[family] | machine
    work["rate_rps"] = rate_at(family, share, **how, **work)
    expected = by_hand(terms, size, WORK | work, room=1 - share)
    assert says(family, **how, **work).e2e_s == pytest.approx(expected, rel=1e-6)
    held = work | {"rate_rps": 0.0, "closed": 1.0, "others": crowd - 1}
    expected = by_hand(terms, size, WORK | held, crowd)
    assert says(family, **how, **held).e2e_s == pytest.approx(expected, rel=1e-9)


@modest
@given(family=families, share=st.floats(0.01, 0.99))
def test_shares_and_identities_of_an_offered_rate(family: str, share: float) -> None:
    rate = rate_at(family, share)
    said = says(family, rate_rps=rate)
    assert said.others == pytest.approx(rate * said.e2e_s, rel=1e-9)  # Little
    assert said.utilization == pytest.approx(share)
    assert said.others_share == pytest.approx(1 - said.c1_s / said.e2e_s)
    assert said.c1_s == pytest.approx(says(family).e2e_s)
    assert 0 < said.ttft_s < said.e2e_s
    assert said.mean_s("tpot", 128.0) == pytest.approx((said.e2e_s - said.ttft_s) / 127)


@modest
@given(share=st.floats(0.01, 0.99))
def test_where_nothing_bends_the_law_has_its_closed_form(share: float) -> None:
    """No experts, and reading and computing one after the other."""
    law = Law(tuple(part for part in PARTS if part != "knee"))
    rate = rate_at("dense", share, law)
    said = says("dense", law, rate_rps=rate)
    assert said.e2e_s == pytest.approx(latency_open(said.c1_s, said.c2_s, rate))
    assert said.others_share == pytest.approx(share)
    assert said.growth == pytest.approx(share / (1 - share))
    held = says("dense", law, closed=1.0, others=said.others)
    assert held.e2e_s == pytest.approx(held.c1_s + held.others * held.c2_s)
    assert held.growth == pytest.approx(held.others * held.c2_s / held.e2e_s)


@modest
@given(family=families, at=st.lists(shares, min_size=2, max_size=5), captured=captured)
def test_latency_and_ttft_grow_with_the_rate(family: str, at: list[float], captured: float) -> None:
    size = {"captured": captured}
    said = [says(family, sizes=size, rate_rps=rate_at(family, share)) for share in sorted(at)]
    for low, high in pairwise(said):
        assert low.e2e_s <= high.e2e_s * (1 + 1e-9)
        assert low.ttft_s <= high.ttft_s * (1 + 1e-9)
    assert said[0].e2e_s >= says(family, sizes=size).e2e_s


@each_family
def test_no_latency_past_the_pole_is_finite_and_the_soft_one_is(family: str) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        past = says(family, rate_rps=np.float64(rate_at(family, 1.2)))
    assert not np.isfinite(past.e2e_s)
    soft = says(family, softness=0.01, rate_rps=rate_at(family, 1.2))
    assert np.isfinite(soft.e2e_s)
    assert soft.e2e_s > says(family, rate_rps=rate_at(family, 0.99)).e2e_s


@each_family
@pytest.mark.parametrize("captured", [np.inf, 16.0])
def test_a_concurrency_is_the_rate_that_keeps_it_in_flight(family: str, captured: float) -> None:
    # Prompts come together where a concurrency is held: said not to, as for schedules at a rate.
    how: dict[str, Any] = {"sizes": {"captured": captured}, "prompt_tokens": 20.0}
    rate = says(family, **how, rate_rps=rate_at(family, 0.6))
    fixed = says(family, **how, closed=1.0, others=rate.others, together=0.0)
    assert fixed.e2e_s == pytest.approx(rate.e2e_s, rel=1e-9)
    assert fixed.c1_s == rate.c1_s and fixed.added_s == pytest.approx(rate.added_s)
    assert fixed.utilization == 0


@each_family
@pytest.mark.parametrize("captured", [np.inf, 16.0], ids=["captured", "beyond"])
@pytest.mark.parametrize("load", ["rate_rps", "others"])
def test_growth_is_what_a_larger_load_does_to_the_latency(
    load: str, family: str, captured: float
) -> None:
    """Experts that others touch included; `added_s` is what one more request does."""
    at = {"rate_rps": rate_at(family, 0.5), "others": 12.0}[load]
    closed = float(load == "others")

    def said(step: float) -> Any:
        return says(family, sizes={"captured": captured}, closed=closed, **{load: at * (1 + step)})

    low, here, high = (said(step) for step in (-1e-6, 0.0, 1e-6))
    slope = np.log(high.e2e_s / low.e2e_s) / 2e-6
    assert here.growth == pytest.approx(slope, rel=1e-6)
    added = (high.e2e_s - low.e2e_s) / (high.others - low.others)
    assert here.added_s == pytest.approx(added, rel=1e-6)


@pytest.mark.parametrize("closed", [0.0, 1.0], ids=["open", "closed"])
def test_growth_of_a_dense_model_is_what_an_error_of_what_others_add_does(closed: float) -> None:
    """Where prompts take all the time that they compute: without a knee."""
    law = Law(tuple(part for part in PARTS if part != "knee"))
    load = {"closed": closed, "others": 40.0 * closed}
    load["rate_rps"] = 0.0 if closed else rate_at("dense", 0.8, law)
    step = 1e-6
    said = says("dense", law, **load)
    crowding = {"factor_crowding": TERMS["factor_crowding"] * (1 + step)}
    more = says("dense", law, terms=crowding, **load)
    assert said.growth == pytest.approx(np.log(more.e2e_s / said.e2e_s) / step, rel=1e-3)


@modest
@given(family=families, share=shares, unit=st.floats(0.01, 99), captured=captured)
def test_another_unit_of_time_changes_nothing_but_the_unit(
    family: str, share: float, unit: float, captured: float
) -> None:
    rate, size = rate_at(family, share), {"captured": captured}
    said = says(family, sizes=size, rate_rps=rate)
    terms = {n: v * unit for n, v in TIMES.items()}
    scaled = says(family, sizes=size, terms=terms, rate_rps=rate / unit)
    for name, value in said._asdict().items():
        expected = value * unit if name.endswith("_s") else value
        # Near the pole 1 - x loses digits.
        assert getattr(scaled, name) == pytest.approx(expected, rel=1e-9, abs=1e-15), name


@each_family
def test_a_plain_server_pays_nothing_for_drafting_and_an_idle_drafter_its_first_pass(
    family: str,
) -> None:
    plain: dict[str, Any] = {"k": 0, "cycles": 127.0, "sizes": {"drafter": 0.0}}
    dear = dict.fromkeys(("overhead_draft_alone", "factor_draft"), 9.0)
    assert says(family, terms=dear, **plain).c1_s == says(family, **plain).c1_s
    idle = says(family, **plain, draft_passes=draft_passes(0, 1))
    assert idle.c1_s > says(family, **plain).c1_s


# --- beyond captured graphs -----------------------------------------------------------------


@each_family
def test_the_host_sets_the_pace_of_passes_beyond_captured_graphs_only(family: str) -> None:
    """With the graphs there are as many tokens in a pass as captured, and one sequence more."""
    others, pace = 12.0, {"pace_dense": 0.1, "pace_experts": 0.1}

    def cycle_s(captured: float) -> tuple[float, float]:
        how: dict[str, Any] = {"sizes": {"captured": captured}, "terms": pace, "closed": 1.0}
        how |= {"others": others, "prompt_tokens": 1e-9}
        less, more = (says(family, **how, cycles=n) for n in (50.0, 51.0))
        return more.decode_s - less.decode_s, less.c1_s

    layers_s, tokens = 32 * 0.1 * TERMS["factor_slowness"], 4 * (1 + others)
    within, alone = cycle_s(tokens * 1.0001)
    beyond, alone_too = cycle_s(tokens * 0.9999)
    assert within < layers_s / 10 and alone == alone_too
    assert beyond == pytest.approx(layers_s)


@each_family
def test_many_rates_are_answered_as_each_alone(family: str) -> None:
    """Some with captured graphs, and some without."""
    shares, prompt = (0.0, 0.1, 0.2, 0.3, 0.6, 0.9), {"prompt_tokens": 1.0}
    rates = np.array([rate_at(family, share, **prompt) for share in shares])
    how: dict[str, Any] = {"sizes": {"captured": 5.0}, **prompt}
    said = says(family, **how, rate_rps=rates)
    for i, rate in enumerate(rates):
        for name, value in says(family, **how, rate_rps=rate)._asdict().items():
            together = np.broadcast_to(getattr(said, name), rates.shape)
            assert together[i] == pytest.approx(value, rel=1e-12), name
    free = says(family, **prompt, rate_rps=rates).e2e_s
    assert said.e2e_s[0] == free[0] and (said.e2e_s > 1.001 * free).any()


@each_family
@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_measured_tokens_say_whether_passes_had_a_graph(family: str, share: float) -> None:
    """Of measured runs, whose fit may not jump from one to the other."""
    load = {"rate_rps": rate_at(family, share), "prompt_tokens": 1000.0}  # beyond them all
    free, slow = (says(family, sizes={"captured": c}, **load) for c in (np.inf, 2.0))
    assert free.e2e_s < slow.e2e_s
    for captured in (3.0 * 4 * (1 + free.others), 2.0):
        expected, size = says(family, sizes={"captured": captured}, **load), {"captured": captured}
        tokens = np.float64(4 * (1 + expected.others))
        said = says(family, sizes=size, **load, pass_tokens=tokens)
        for name in ("e2e_s", "ttft_s", "others", "growth", "added_s"):
            value = getattr(expected, name)
            assert getattr(said, name) == pytest.approx(value, rel=1e-12), name
    load = load | {"prompt_tokens": 1.0}
    size = {"captured": np.float64(4 * (1 + free.others))}
    within, past = (
        says(family, sizes=size, **load, pass_tokens=size["captured"] * near)
        for near in (0.9999, 1.0001)
    )
    assert within.e2e_s < past.e2e_s * 0.99


@each_family
def test_prompts_beyond_captured_graphs_are_launched_once_a_pass(family: str) -> None:
    """A prompt alone, and those that come together where a concurrency is held."""
    pace, layers_s = {"pace_dense": 9.0, "pace_experts": 9.0}, 32 * 9.0 * TERMS["factor_slowness"]

    def prefills_s(captured: float, **work: Any) -> float:
        size = {"captured": captured}
        slow, fast = (says(family, sizes=size, terms=t, **work) for t in (pace, {}))
        return slow.e2e_s - fast.e2e_s

    graphs = dict.fromkeys(("k", "draft_passes"), 0)  # of decoding: a token a sequence
    held: dict[str, Any] = graphs | {"closed": 1.0, "others": 9.0}
    for load, longest in ((graphs, 100.0), (held, 10.0)):
        for prompt, expected_s in ((longest - 1, 0.0), (longest + 1, layers_s)):
            found_s = prefills_s(100.0, prompt_tokens=prompt, **load)
            assert found_s == pytest.approx(expected_s, rel=0.02)


# --- parts ----------------------------------------------------------------------------------

PROMPTS = {"prompt_alone", "prompt_others"}
PASS = {"verify_alone", "verify_others", "compute_alone", "compute_others"}
MOVES = {  # the stage costs that a part may change
    "host": {"prefill_alone", "prefill_others", "verify_alone", "verify_others"},
    "layers": {"prefill_alone", "prefill_others", "fixed"},
    "experts": {"fixed", "experts", "uneven"},
    "tokens": PASS,
    "context": {"verify_alone", "verify_others"},
    "attention": PROMPTS,
    "graphs": {"pace"},
    "knee": set(),
    "stalls": {"ahead", *costs.DECODING},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_moves_only_its_own_stages(part: str) -> None:
    rest = tuple(p for p in PARTS if p != part)
    work, sizes = WORK | {"prompt_tokens": 1500.0}, SIZES["moe"] | {"captured": 1e6}
    without, with_it = (Law(p).stages(TERMS, sizes, work) for p in (rest, PARTS))
    moved = {n for n in Stages._fields if getattr(without, n) != getattr(with_it, n)}
    assert moved == MOVES[part]


def test_all_times_are_slowed_and_what_others_add_is_crowded() -> None:
    plain = Law(PARTS).stages(TERMS | {"factor_slowness": 1.0}, SIZES["moe"], WORK)
    slow = Law(PARTS).stages(TERMS | {"factor_slowness": 3.0}, SIZES["moe"], WORK)
    crowded = Law(PARTS).stages(TERMS | {"factor_crowding": 0.5 * 0.95}, SIZES["moe"], WORK)
    for name in Stages._fields:
        before, time = getattr(plain, name), name in costs.TIMES
        assert getattr(slow, name) == pytest.approx(before * (3 if time else 1)), name
        expected = before * (1.05 if time else 1) * (0.5 if name in costs.OTHERS else 1)
        assert getattr(crowded, name) == pytest.approx(expected), name


@each_family
def test_reading_and_computing_go_side_by_side_with_a_knee(family: str) -> None:
    """The longer of the two, as long as one is much longer; else less than their sum."""
    memory, arithmetic = {"gb_per_s": 10.0}, {"tflops": 0.1}
    for size in (memory, arithmetic, {}):
        said = [
            says(family, law, sizes=size, closed=1.0, others=8.0)
            for law in (FULL, Law(tuple(p for p in DEFAULT if p != "knee")))
        ]
        stages = FULL.stages(TERMS, SIZES[family] | size, WORK)
        compute = stages.compute_alone + 8 * stages.compute_others
        phi, _ = coverage(SIZES[family], 36, TERMS["uneven_experts"])
        read = stages.fixed + phi * stages.experts
        hidden = read + compute - np.hypot(read, compute)
        prompt = stages.prompt_alone + 8 * stages.prompt_others
        with_prompts = read + compute + prompt - np.hypot(read, compute + prompt)
        waits = TERMS["queue_cycles"]
        expected = (WORK["cycles"] + waits - 1) * hidden + with_prompts
        assert said[1].e2e_s - said[0].e2e_s == pytest.approx(expected)
        shorter = min(read, compute)
        assert 0.58 * shorter < hidden < shorter or not size
        assert (hidden > 0.95 * shorter) == bool(size)


@each_family
def test_the_papers_law_is_linear_in_size_and_has_its_closed_form(family: str) -> None:
    law, said = Law(("host",)), []
    for n in (4.0, 6.0, 8.0):
        size = {"active": n, "shared": n}
        said.append(says(family, law, sizes=size, rate_rps=0.3))
    for name in ("c1_s", "c2_s"):
        small, middle, large = (getattr(each, name) for each in said)
        assert middle == pytest.approx((small + large) / 2) and middle > 0
    first = said[0]
    assert first.e2e_s == pytest.approx(latency_open(first.c1_s, first.c2_s, 0.3))
    assert first.growth == pytest.approx(0.3 * first.c2_s / (1 - 0.3 * first.c2_s))


def test_stalls_only_say_when_the_others_prefills_are_waited_for() -> None:
    """And count the cycles before the first token, which the paper's latency leaves out."""
    load = {"closed": 1.0, "others": 6.0}
    waiting = says("dense", Law(("layers", "tokens")), **load)
    stalling = says("dense", Law(("layers", "tokens", "stalls")), **load)
    parts = Law(("layers", "tokens")).stages(TERMS, SIZES["dense"], WORK)
    cycle_s = queue.beside(parts, SIZES["dense"], WORK, 6.0).cycle(False).seconds
    before_s, decoded = TERMS["queue_cycles"] * cycle_s, stay(parts, WORK)
    # Of six others those that wait are in no pass.
    fewer_s = decoded * 6 * (1 - WORK["cycles"] / decoded) * parts.verify_others
    fewer_s += decoded * 6 * (1 - WORK["cycles"] / decoded) * parts.compute_others
    fewer_s += decoded * 6 * (1 - WORK["cycles"] / decoded) * 3 * parts.draft_others
    assert stalling.e2e_s == pytest.approx(waiting.e2e_s + before_s - fewer_s)
    assert waiting.ttft_s > stalling.ttft_s > 0
    assert stalling.decode_s == stalling.e2e_s - stalling.ttft_s


def test_prompts_wait_for_each_other_where_a_concurrency_is_held_and_only_there() -> None:
    """Answers that end together are followed by prompts that come together: the mean ignores it."""
    size, work = SIZES["dense"], WORK | {"rate_rps": rate_at("dense", 0.5)}
    held = WORK | {"closed": 1.0, "others": 27.0}

    def ttft(load: dict[str, Any], ahead: float) -> tuple[float, float]:
        stages = FULL.stages(TERMS | {"prefills_ahead": ahead}, size, load)
        said = outcome(stages, size, load)
        return said.ttft_s, said.e2e_s

    assert ttft(work, 0.0) == ttft(work, 1.0)
    (none, before), (all_of_them, after) = ttft(held, 0.0), ttft(held, 1.0)
    stages = FULL.stages(TERMS, size, held)
    loaded = queue.beside(stages, size, held, 27.0)
    alone, long = (
        loaded.cycle(True, stages.prompt_alone + n * stages.prompt_others) for n in (0, 27)
    )
    ahead_s = 27 * stages.prefill_others + long.seconds - alone.seconds
    assert all_of_them - none == pytest.approx(ahead_s) and before == pytest.approx(after)


def test_an_unknown_part_is_refused_and_order_makes_no_other_law() -> None:
    with pytest.raises(
        InputError, match="parts = 'expert': must be one of host, layers, experts, .*, stalls"
    ):
        Law(("expert",))
    assert Law(tuple(reversed(DEFAULT))) == FULL
    assert {term for part in PARTS for term in Law((part,)).terms} == {*TIMES, *RATIOS}


# --- one law, two libraries -----------------------------------------------------------------


@pytest.mark.sample
@each_family
def test_the_law_of_measured_runs_is_the_same_for_numpy_and_pytensor(family: str) -> None:
    """Its gradient too, of every coefficient, within captured graphs and beyond."""
    import pytensor
    import pytensor.tensor as pt
    from pytensor.compile.mode import Mode

    passes = np.array([0.0, 1.0, 5.0, 2.0, 2.0])
    # At 512 tokens attention has no part in the cost of a prompt.
    work = WORK | {"k": passes, "draft_passes": passes, "others": np.zeros(5)}
    work |= {"prompt_tokens": 700.0}
    work |= {"cycles": np.array([127.0, 75.0, 41.0, 60.0, 60.0]), "closed": np.zeros(5)}
    work |= {"rate_rps": np.zeros(5)}
    work["closed"][-1], work["others"][-1] = 1.0, 7.0
    size = {n: np.array(v) for n, v in (SIZES[family] | {"captured": 8.0}).items()}

    def numbers(terms: dict[str, Any], load: Any) -> Any:
        return outcome(FULL.stages(terms, size, load), size, load, 0.01)

    work["rate_rps"] = np.array([0.0, 0.3, 0.9, 0.2, 0.0]) / numbers(TERMS, work).c2_s
    work["pass_tokens"] = (passes + 1) * (1 + 1.05 * numbers(TERMS, work).others)  # off by 5%
    symbols = {n: pt.dvector(n) for n, v in work.items() if np.ndim(v)}
    terms = {n: pt.dscalar(n) for n in TERMS}
    symbolic = numbers(terms, work | symbols)
    used = [terms[n] for n in (*FULL.terms, *FACTORS)]
    total = symbolic.e2e_s.sum() + symbolic.ttft_s.sum()
    slopes = pytensor.grad(total, used, disconnected_inputs="ignore")
    run = pytensor.function(
        [*symbols.values(), *terms.values()],
        [*symbolic, *slopes],
        mode=Mode("py", None),  # others join sums of more terms than NumPy has operands for
        on_unused_input="ignore",
    )
    values = run(*(work[n] for n in symbols), *TERMS.values())
    expected = numbers(TERMS, work)
    for i, (name, value) in enumerate(expected._asdict().items()):
        np.testing.assert_allclose(values[i], value, rtol=1e-12, err_msg=name)
    exact = values[len(expected) :]
    for symbol, slope in zip(used, exact, strict=True):
        name = symbol.name
        low, high = (numbers(TERMS | {name: TERMS[name] * (1 + s)}, work) for s in (-1e-5, 1e-5))
        moved = (high.e2e_s + high.ttft_s - low.e2e_s - low.ttft_s).sum() / (2e-5 * TERMS[name])
        assert slope == pytest.approx(moved, rel=1e-6, abs=1e-9 / TERMS[name]), name
