"""The simulated server: exact where a hand can count, and the law where its assumptions hold."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sd.errors import InputError
from bayes_sd.physics.queue import coverage

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from simulator import SimulatedServer, dispersion, lengths, poisson_arrivals, simulate

SERVER = SimulatedServer()


def latency_open(law, rate_rps: float) -> float:
    """Equation (1), C1 / (1 - rate C2)."""
    return law.c1_s / (1 - rate_rps * law.c2_s)


@settings(max_examples=30, deadline=None)
@given(prompt=st.integers(1, 6000), output=st.integers(1, 200), k=st.integers(0, 5))
def test_a_request_alone_with_everything_accepted_can_be_counted(
    prompt: int, output: int, k: int
) -> None:
    one = simulate(SERVER, [3.0], prompt, output, k, acceptance=1.0).iloc[0]
    chunks = -(-prompt // SERVER.chunk_tokens)
    prefill = chunks * SERVER.pass_s + prompt * SERVER.prompt_token_s
    passes = -(-(output - 1) // (k + 1))
    cycle = SERVER.pass_s + SERVER.sequence_s + (k + 1) * SERVER.token_s
    cycle += k * (SERVER.draft_s + SERVER.draft_sequence_s)
    assert one["cycles"] == passes
    assert one["ttft_s"] == pytest.approx(prefill)
    assert one["e2e_s"] == pytest.approx(prefill + passes * cycle)


def test_two_at_once_share_their_passes() -> None:
    two = simulate(SERVER, [0.0, 0.0], 100, 11)
    alone = simulate(SERVER, [0.0], 100, 11)
    assert two["e2e_s"].nunique() == 1
    added = 100 * SERVER.prompt_token_s + 10 * (SERVER.sequence_s + SERVER.token_s)
    assert two["e2e_s"][0] == pytest.approx(alone["e2e_s"][0] + added)


def test_who_arrives_during_a_pass_joins_the_next() -> None:
    prefill, decode = 0.011, SERVER.pass_s + SERVER.sequence_s + SERVER.token_s
    arrival = prefill + 1.5 * decode
    ttft = simulate(SERVER, [0.0, arrival], 100, [11, 2])["ttft_s"][1]
    beside = prefill + SERVER.sequence_s + SERVER.token_s
    assert ttft == pytest.approx(prefill + 2 * decode + beside - arrival)


def test_requests_beyond_the_limit_wait() -> None:
    narrow = SimulatedServer(max_sequences=1)
    first, second = simulate(narrow, [0.0, 0.0], 10, 5)["e2e_s"]
    assert second == pytest.approx(2 * first)


def test_the_same_seed_gives_the_same_tokens() -> None:
    arrivals = poisson_arrivals(2.0, 30, np.random.default_rng(0))
    runs = [simulate(SERVER, arrivals, 64, 32, 3, 0.6, seed=s)["e2e_s"] for s in (1, 1, 2)]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()


@pytest.mark.parametrize(("k", "alpha"), [(0, 0.0), (3, 0.7)])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_law_holds_where_its_assumptions_do(k: int, alpha: float, share: float) -> None:
    law = SERVER.law(k, 128, 64, alpha)
    rate = share / law.c2_s
    arrivals = poisson_arrivals(rate, 1500, np.random.default_rng(3))
    mean = simulate(SERVER, arrivals, 128, 64, k, alpha)["e2e_s"].iloc[200:].mean()
    assert mean == pytest.approx(latency_open(law, rate), rel=0.06)


def test_experts_are_read_as_they_are_touched() -> None:
    server = SimulatedServer(experts_s=0.04, idle=1 - 2 / 16)
    for n in (1, 40):
        per_pass = simulate(server, [0.0] * n, 8, 200)["e2e_s"].mean() / 200
        share, _ = coverage({"idle": server.idle, "log_idle": np.log(server.idle)}, n)
        cost = server.pass_s + server.experts_s * share
        cost += n * (server.sequence_s + server.token_s)
        assert per_pass == pytest.approx(cost, rel=0.05)


def test_bursts_make_latencies_longer_than_the_law_says() -> None:
    law = SERVER.law(0, 128, 64, 0.0)
    rate = 0.6 / law.c2_s
    bursts = poisson_arrivals(rate, 2500, np.random.default_rng(5), burstiness=0.2)
    mean = simulate(SERVER, bursts, 128, 64)["e2e_s"].iloc[200:].mean()
    assert mean > 1.1 * latency_open(law, rate)


@pytest.mark.parametrize(("shape", "expected"), [(1.0, 1.0), (0.25, 4.0), (4.0, 0.25)])
def test_arrivals_in_a_long_window_vary_as_their_gaps_do(shape: float, expected: float) -> None:
    assert dispersion(shape, 50.0) == pytest.approx(expected, rel=0.15)
    short = dispersion(shape, 0.01)  # one or none, mostly
    assert abs(short - 1) <= abs(expected - 1) / 2 + 0.05


def test_a_constant_rate_gives_two_or_three() -> None:
    assert dispersion(float("inf"), 2.5) == 0.1


@pytest.mark.parametrize(("cv", "tail"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.5)])
def test_lengths_have_their_mean_and_spread(cv: float, tail: float) -> None:
    tokens = lengths(64, cv, tail, 5000, np.random.default_rng(0))
    assert tokens.mean() == pytest.approx(64, rel=0.01) and tokens.min() >= 1
    if tail:
        assert tokens.max() > 50 * np.median(tokens)
    else:
        assert tokens.std() / tokens.mean() == pytest.approx(cv, abs=0.03)


@pytest.mark.parametrize(
    "arguments", [([1.0, 0.0], 8, 8), ([], 8, 8), ([0.0], 0, 8), ([0.0], 8, 0), ([np.nan], 8, 8)]
)
def test_impossible_requests_are_refused(arguments: tuple) -> None:
    with pytest.raises(InputError, match="arrivals_s must be finite|there must be a request"):
        simulate(SERVER, *arguments)
