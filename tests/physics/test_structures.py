"""Assumed structures: terms, limits, monotonicity, and the same numbers by another way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_inputs import SIZES, TERMS, WORK, rate_at, says
from scipy.optimize import brentq

from bayes_sd.errors import InputError
from bayes_sd.physics import structures as S
from bayes_sd.physics.costs import Stages, scaled
from bayes_sd.physics.law import FULL, Outcome, capacity_rps, placed_outcome
from bayes_sd.physics.queue import coverage, tokens_in_pass
from bayes_sd.physics.structures import Placed, Structure

modest = settings(max_examples=6, deadline=None)  # each solves many fixed points
families = st.sampled_from(["dense", "moe"])
drafts = st.integers(0, 8)
busy = st.floats(0, 0.95)
shares = st.floats(0, 1)
seconds = st.floats(0, 0.2)
crowds = st.floats(0, 60)
SOME = [
    S.Edge(round_trip_s=0.02, slowdown=3),
    S.Overlapped(hidden=0.7, interference=0.1),
    S.Asynchronous(sync_s=0.001, verify_slowdown=1.3, wasted=0.3),
    S.Disaggregated(transfer_s=0.01, bandwidth_gb_per_s=10),
]
GONE = [  # with these terms each is the colocated law, whatever the others are
    S.Edge(offloaded=0.0, round_trip_s=0.3, slowdown=9.0),
    S.Overlapped(hidden=0.0),
    S.Asynchronous(wasted=1.0),
    S.Disaggregated(separated=0.0, transfer_s=0.3),
]


def named(structures: list[Structure]) -> Any:
    return pytest.mark.parametrize("structure", structures, ids=lambda s: type(s).__name__)


def load(family: str, share: float, k: int, others: float | None = None) -> dict[str, Any]:
    """A load at a share of the colocated capacity, or beside so many others."""
    work = WORK | {"k": k, "draft_passes": k}
    if others is not None:
        return work | {"closed": 1.0, "others": np.float64(others)}
    return work | {"rate_rps": np.float64(rate_at(family, share, k=k))}


def stages_of(family: str, work: dict[str, Any]) -> Stages:
    return FULL.stages(TERMS, SIZES[family], work)


def place(structure: Structure, family: str, work: dict[str, Any]) -> Placed:
    """Stage costs in a structure whose terms are numbers, so that one draw is all."""
    put = structure.drawn(1, lambda name: np.random.default_rng(0))
    return put(stages_of(family, work), SIZES[family], work)


def answer(placed: Placed, family: str, work: dict[str, Any]) -> Outcome:
    with np.errstate(divide="ignore", invalid="ignore"):  # past the pole, as in answers
        return placed_outcome(placed, SIZES[family], work)


def solve(structure: Structure, family: str, work: dict[str, Any]) -> Outcome:
    return answer(place(structure, family, work), family, work)


def verify_s(s: Stages, size: dict[str, float], k: int, b: float, prompts_s: float = 0.0) -> float:
    """Seconds of a pass beside `b` others that computes prompts as well."""
    phi, _ = coverage(size, tokens_in_pass(b, k), s.uneven)
    compute_s = s.compute_alone + b * s.compute_others + prompts_s
    work = np.hypot(s.fixed + phi * s.experts, compute_s)
    return float(s.verify_alone + b * s.verify_others + work)


def taking_in(b: float, stay: float) -> tuple[float, float]:
    """Share of cycles that take prompts in, beside `b` others who stay so long; prompts in each."""
    share = -np.expm1(-b / stay)
    return share, b / stay / share


def colocated(family: str, work: dict[str, Any]) -> Outcome:
    return says(family, **work)


def assert_same(one: Outcome, other: Outcome, rel: float = 1e-9) -> None:
    for name in Outcome._fields:
        a, b = float(getattr(one, name)), float(getattr(other, name))
        assert a == pytest.approx(b, rel=rel, abs=1e-12), name


# --- terms ----------------------------------------------------------------------------------


FACTOR = "a number (or low, high) above 0, at most 10000"
AMOUNT = "a number from 0, or (low, high) above 0, at most 10000"
SHARE = "a share from 0 to 1, or (low, high) between 0 and 1"


@pytest.mark.parametrize(
    ("kind", "term", "value", "allowed"),
    [
        (S.Edge, "round_trip_s", -0.1, AMOUNT),
        (S.Edge, "round_trip_s", (0.0, 0.1), AMOUNT),
        (S.Edge, "round_trip_s", (0.1, 0.2, 0.3), AMOUNT),
        (S.Edge, "round_trip_s", "fast", AMOUNT),
        (S.Edge, "round_trip_s", float("nan"), AMOUNT),
        (S.Asynchronous, "sync_s", 1e300, AMOUNT),
        (S.Asynchronous, "verify_slowdown", 0, FACTOR),
        (S.Asynchronous, "wasted", -0.1, SHARE),
        (S.Overlapped, "hidden", 1.2, SHARE),
        (S.Overlapped, "hidden", (0.5, 1.0), SHARE),
        (S.Disaggregated, "bandwidth_gb_per_s", 0, "a number (or low, high) above 0"),
    ],
)
def test_a_bad_term_is_one_sentence(kind: Any, term: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError) as error:
        kind(**{term: value})
    assert str(error.value) == f"{kind.__name__}: {term} = {value!r}: must be {allowed}."


def test_a_reversed_interval_is_called_so() -> None:
    with pytest.raises(InputError, match="round_trip_s = .0.2, 0.1.: the interval is reversed"):
        S.Edge(round_trip_s=(0.2, 0.1))


def test_terms_given_as_intervals_are_drawn_so() -> None:
    edge = S.Edge(round_trip_s=(0.02, 0.05), slowdown=4, offloaded=(0.3, 0.8))
    put = edge.drawn(4000, lambda name: np.random.default_rng(len(name)))
    terms = put.keywords  # type: ignore[attr-defined]
    assert terms["slowdown"] == 4.0
    for name, interval in {"round_trip_s": (0.02, 0.05), "offloaded": (0.3, 0.8)}.items():
        assert terms[name].shape == (4000, 1)
        np.testing.assert_allclose(np.quantile(terms[name], [0.05, 0.95]), interval, rtol=0.06)
    assert terms["round_trip_s"].min() > 0 and terms["offloaded"].max() < 1
    assert set(S.NAMES.values()) == {type(s) for s in SOME}


# --- limits ---------------------------------------------------------------------------------


@modest
@given(family=families, k=drafts, share=busy, others=crowds)
@named(GONE)
def test_without_its_terms_a_structure_is_the_colocated_law(
    structure: Structure, family: str, k: int, share: float, others: float
) -> None:
    for work in (load(family, share, k), load(family, 0, k, others)):
        assert_same(solve(structure, family, work), colocated(family, work))
        unplaced = answer(Placed((stages_of(family, work),)), family, work)
        assert unplaced == colocated(family, work)


@modest
@given(family=families, share=busy, hidden=shares, term=seconds)
def test_plain_decoding_is_changed_by_a_prefill_pool_only(
    family: str, share: float, hidden: float, term: float
) -> None:
    work = load(family, share, 0)
    for structure in (
        S.Edge(round_trip_s=term, slowdown=5.0),
        S.Overlapped(hidden=hidden, interference=term),
        S.Asynchronous(sync_s=term, verify_slowdown=2.0, draft_slowdown=3.0, wasted=hidden),
    ):
        assert not structure.changes_plain
        assert_same(solve(structure, family, work), colocated(family, work))
    apart = [solve(S.Disaggregated(transfer_s=t), family, work).e2e_s for t in (0.0, 1.0)]
    assert apart[1] - apart[0] == pytest.approx(1.0)


# --- monotonicity ---------------------------------------------------------------------------

WORSE = {  # a term that grows and never makes anything faster, and the rest of its structure
    "round_trip": (lambda t: S.Edge(round_trip_s=t), seconds),
    "edge_slowdown": (lambda f: S.Edge(round_trip_s=0.01, slowdown=f), st.floats(0.5, 20)),
    "shown": (lambda w: S.Overlapped(hidden=1 - w), shares),
    "wasted": (lambda u: S.Asynchronous(wasted=u), shares),
    "verify_slowdown": (lambda f: S.Asynchronous(verify_slowdown=f), st.floats(0.5, 20)),
    "draft_slowdown": (lambda f: S.Asynchronous(draft_slowdown=f), st.floats(0.5, 20)),
    "prefill_slowdown": (lambda f: S.Disaggregated(prefill_slowdown=f), st.floats(0.5, 20)),
    "decode_slowdown": (lambda f: S.Disaggregated(decode_slowdown=f), st.floats(0.5, 20)),
    "slow_link": (lambda s: S.Disaggregated(bandwidth_gb_per_s=1 / s), st.floats(0.01, 10)),
}


@modest
@given(data=st.data(), family=families, k=drafts, share=st.floats(0, 0.04), crowd=crowds)
@pytest.mark.parametrize("term", WORSE)
def test_a_worse_term_is_never_faster(
    term: str, data: st.DataObject, family: str, k: int, share: float, crowd: float
) -> None:
    make, values = WORSE[term]
    low, high = sorted((data.draw(values), data.draw(values)))
    work = load(family, share, k, crowd if data.draw(st.booleans()) else None)
    quick, slow = (solve(make(value), family, work) for value in (low, high))
    if slow.utilization < 1:
        assert slow.e2e_s >= quick.e2e_s * (1 - 1e-9)


@modest
@given(family=families, k=drafts, low=busy, high=busy)
@named(SOME)
def test_latency_grows_with_the_rate_up_to_capacity(
    structure: Structure, family: str, k: int, low: float, high: float
) -> None:
    work, (low, high) = load(family, 0, k), sorted((low, high))
    placed = place(structure, family, work)
    top = capacity_rps(placed, work)
    said = [answer(placed, family, work | {"rate_rps": f * top}) for f in (low, high, 1.01)]
    assert said[0].e2e_s <= said[1].e2e_s * (1 + 1e-12)
    assert [bool(s.utilization < 1) for s in said] == [True, True, False]
    assert 1 / said[0].c2_s == pytest.approx(float(top))


# --- the same numbers by another way --------------------------------------------------------


@modest
@given(family=families, k=st.integers(1, 8), share=busy, hidden=shares, slower=st.floats(0.5, 20))
def test_a_cycle_is_the_sum_less_what_is_hidden_at_every_load(
    family: str, k: int, share: float, hidden: float, slower: float
) -> None:
    """``V + D - w min(V, D)``, which of the two is longer being decided at the load."""
    work, size = load(family, 0, k), SIZES[family]
    s = stages_of(family, work)

    def way_s(verify: float, draft: float, b: float, together: bool) -> float:
        """Latency where so much of verification and of drafting shows."""
        v, stay = scaled(s, S.VERIFY, verify), work["cycles"] + s.waits

        def cycle_s(prompts_s: float = 0.0) -> float:
            drafts = k * (s.draft_alone + b * s.draft_others)
            return verify_s(v, size, k, b, prompts_s) + draft * slower * drafts

        plain = cycle_s()
        seconds = s.prefill_alone + b * s.prefill_others + stay * plain
        if together:
            return seconds + cycle_s(s.prompt_alone + b * s.prompt_others) - plain
        share, each = taking_in(b, stay) if b else (0.0, 1.0)
        seconds += (stay - 1) * share * (cycle_s(each * s.prompt_others) - plain)
        return seconds + cycle_s(s.prompt_alone + b / stay * s.prompt_others) - plain

    def own_s(b: float, together: bool = False) -> float:
        shown = 1 - hidden
        return max(way_s(1.0, shown, b, together), way_s(shown, 1.0, b, together))

    structure = S.Asynchronous(wasted=1 - hidden, draft_slowdown=slower)
    rate = share * capacity_rps(place(structure, family, work), work)
    at_rate = solve(structure, family, work | {"rate_rps": rate})
    top = 2 * float(rate * at_rate.e2e_s) + 1
    b = brentq(lambda b: rate * own_s(b) - b, 0.0, top, xtol=1e-12, rtol=1e-12)
    assert at_rate.e2e_s == pytest.approx(own_s(b), rel=1e-8)
    crowd = solve(structure, family, load(family, 0, k, b))
    assert crowd.e2e_s == pytest.approx(own_s(b, together=True), rel=1e-8)


@modest
@given(family=families, k=st.integers(1, 8), trip=st.floats(1e-4, 0.5), others=crowds)
def test_at_a_concurrency_the_server_holds_who_is_not_elsewhere(
    family: str, k: int, trip: float, others: float
) -> None:
    """A share of the requests in flight is on the server: that of its time in their latency."""
    work, size = load(family, 0, k, others), SIZES[family]
    placed = place(S.Edge(round_trip_s=trip), family, work)
    (s,), away = placed.ways, work["cycles"] * placed.away_s

    def served_s(b: float) -> float:
        cycle = verify_s(s, size, k, b)
        prompts = verify_s(s, size, k, b, s.prompt_alone + b * s.prompt_others) - cycle
        stay = work["cycles"] + s.waits
        return float(s.prefill_alone + b * s.prefill_others + prompts + stay * cycle)

    b = brentq(lambda b: b * (away + served_s(b)) - others * served_s(b), 0.0, others + 1e-9)
    said = answer(placed, family, work)
    assert said.e2e_s == pytest.approx(away + served_s(b), rel=1e-7)
    assert said.utilization == 0


@pytest.mark.parametrize("family", ["dense", "moe"])
@named([S.Edge(round_trip_s=0.0, offloaded=0.0), S.Edge(0.05), S.Edge(0.5)])
def test_throughput_rises_with_concurrency_but_where_graphs_end(
    structure: Structure, family: str
) -> None:
    """Up to 200 in flight; a fixed point that jumped would lose nearly all of it."""
    k, others = 3, np.arange(200.0)
    work = load(family, 0, k) | {"closed": 1.0, "others": others, "prompt_tokens": 16.0}

    def throughput(**changes: float) -> np.ndarray:
        size = SIZES[family] | changes
        put = structure.drawn(1, lambda name: np.random.default_rng(0))
        placed = put(FULL.stages(TERMS, size, work), size, work)
        said = placed_outcome(placed, size, work)
        return (1 + others) / said.e2e_s

    assert (np.diff(throughput()) > 0).all()
    paced = throughput(captured=16.0)
    assert (paced <= throughput() * (1 + 1e-9)).all()
    if structure.offloaded == 0:  # all are on the server: 4 sequences of 4 tokens have a graph
        assert np.flatnonzero(np.diff(paced) < 0).tolist() == [3]


@pytest.mark.parametrize("family", ["dense", "moe"])
@pytest.mark.parametrize("held", [False, True], ids=["rate", "concurrency"])
@named(SOME)
def test_growth_is_what_a_larger_load_does_to_the_latency(
    structure: Structure, held: bool, family: str
) -> None:
    work, name = load(family, 0.4, 3, 20.0 if held else None), "others" if held else "rate_rps"

    def said(step: float) -> Outcome:
        return solve(structure, family, work | {name: work[name] * (1 + step)})

    slope = np.log(said(1e-5).e2e_s / said(-1e-5).e2e_s) / 2e-5
    assert said(0.0).growth == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_round_trip_is_neither_stretched_by_load_nor_part_of_the_first_token(
    share: float,
) -> None:
    work = load("dense", share, 3)
    near, far = (solve(S.Edge(round_trip_s=t), "dense", work) for t in (0.0, 0.05))
    assert far.e2e_s - near.e2e_s == pytest.approx(work["cycles"] * 0.05)
    assert far.ttft_s == near.ttft_s
    assert far.e2e_s == pytest.approx(far.ttft_s + far.decode_s)


def test_prompts_and_tokens_add_up_with_a_pool() -> None:
    work = load("dense", 0.4, 3)
    said = solve(S.Disaggregated(transfer_s=0.02, bandwidth_gb_per_s=5.0), "dense", work)
    s, rate, n = stages_of("dense", work), work["rate_rps"], work["cycles"]
    prompt_s = s.prefill_others + s.prompt_others
    rho = rate * prompt_s
    transfer = 0.02 + SIZES["dense"]["kv_gb"] * work["prompt_tokens"] / 5.0
    wait = rho * prompt_s / (2 * (1 - rho))
    assert said.ttft_s == pytest.approx(s.prefill_alone + s.prompt_alone + transfer + wait)
    assert said.e2e_s == pytest.approx(said.ttft_s + said.decode_s)
    others = rate * said.decode_s  # those on the decode pool
    drafts = 3 * (s.draft_alone + others * s.draft_others)
    decode = n * (verify_s(s, SIZES["dense"], 3, others) + drafts)
    assert said.decode_s == pytest.approx(decode)


def test_a_slow_prefill_pool_saturates_first() -> None:
    work, slow = load("dense", 0.0, 3), S.Disaggregated(prefill_slowdown=500.0)
    said = solve(slow, "dense", work)
    s = stages_of("dense", work)
    assert said.c2_s == pytest.approx(500 * (s.prefill_others + s.prompt_others))
    past = solve(slow, "dense", work | {"rate_rps": 1.1 / said.c2_s})
    assert past.utilization >= 1 and np.isinf(past.e2e_s)
