"""How many requests at which rate a point means, and how long it will take."""

from dataclasses import dataclass

from bayes_sd.collector.plan import BenchPlan, ConfigurationPlan, Plan, PointPlan

FEWEST = 4  # requests of a run that max_seconds would otherwise make shorter
# In a closed loop of B, throughput is about B / (B + this) of the capacity: enough to size a run.
HALF_FULL = 8


@dataclass(frozen=True)
class Load:
    """What the load generator is asked for; `rate_rps` is None in a closed loop."""

    requests: int
    rate_rps: float | None
    concurrency: int | None
    seconds: float


def capacity(bench: BenchPlan, probed_rps: float, prompt: int, output: int) -> float:
    """Capacity (1/s) at these lengths, from that of the probe's."""

    def work(p: int, g: int) -> float:
        return bench.prompt_weight * p + g

    return probed_rps * work(bench.probe_prompt, bench.probe_output) / work(prompt, output)


def load_of(bench: BenchPlan, point: PointPlan, probed_rps: float | None) -> Load:
    """Requests and rate of a point.

    Parameters
    ----------
    bench : BenchPlan
    point : PointPlan
    probed_rps : float or None
        Capacity at the probe's lengths, 1/s; needed where the point says a share of it.
    """
    most = None if probed_rps is None else capacity(bench, probed_rps, point.prompt, point.output)
    if point.concurrency is not None:
        share = point.concurrency / (point.concurrency + HALF_FULL)
        expected = bench.min_requests / bench.run_seconds if most is None else share * most
        rate = None
    else:
        if point.load is not None:
            assert most is not None, "a share of the capacity needs the probe"
            expected = point.load * most
        else:
            assert point.rate_rps is not None
            expected = point.rate_rps
        rate = float(f"{expected:.4g}")
    wanted = min(max(round(expected * bench.run_seconds), bench.min_requests), bench.max_requests)
    requests = max(min(wanted, int(expected * bench.max_seconds)), FEWEST)
    served = expected if most is None else min(expected, most)
    return Load(requests, rate, point.concurrency, requests / served)


def guessed(bench: BenchPlan, c: ConfigurationPlan, point: PointPlan) -> Load:
    """The same before the probe, from the plan's guess or, without one, the wanted length."""
    guess = c.capacity_guess_rps
    if guess is None and point.load is not None:
        requests = max(bench.min_requests, FEWEST)
        return Load(requests, None, None, bench.run_seconds)
    return load_of(bench, point, guess)


def run_s(plan: Plan, c: ConfigurationPlan, point: PointPlan) -> float:
    """Expected seconds of one run, the load generator's start included."""
    return guessed(plan.bench, c, point).seconds + plan.expected.run_overhead_s


def server_s(plan: Plan, c: ConfigurationPlan) -> float:
    """Expected seconds of starting, warming up, probing and stopping a server."""
    e, bench = plan.expected, plan.bench
    probe = bench.probe_requests / c.capacity_guess_rps if c.capacity_guess_rps else 10.0
    return e.startup_s + e.stop_s + 2 * e.run_overhead_s + probe


def total_s(plan: Plan) -> float:
    """Expected seconds of the whole plan."""
    return sum(
        server_s(plan, c) + sum(run_s(plan, c, point) for point in c.points)
        for c in plan.configurations
    )
