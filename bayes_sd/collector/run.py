"""Carry out a plan: every configuration's server, every point, once; go on where it was left."""

import json
import random
import signal
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bayes_sd.collector import engine_metrics, load
from bayes_sd.collector.bench import Bench, Job, now_s, slim, window
from bayes_sd.collector.describe import metadata, portable
from bayes_sd.collector.files import locked, read_state, remove_partials, write_state, write_text
from bayes_sd.collector.plan import ConfigurationPlan, Plan, PointPlan, read_plan
from bayes_sd.collector.processes import end_orphans
from bayes_sd.collector.progress import Progress
from bayes_sd.collector.server import Failure, Server, ServerDied, served_name, serving
from bayes_sd.errors import InputError

PRIVATE = ".collect"  # records of processes, the lock, the run that is being written
SERVER = "server"  # what a configuration's failures are filed under when no run was at fault


@dataclass(frozen=True)
class Collected:
    """What a collection has and lacks.

    Parameters
    ----------
    folder : Path
        Readable by ``read_traces``.
    runs : int
        Finished runs in it, from this session and earlier ones.
    new : int
        Those of this session.
    missing : int
        Runs of the plan that are not there.
    failures : dict
        ``CONFIGURATION/RUN`` (or ``CONFIGURATION/server``) to the reason, of what is missing.
    """

    folder: Path
    runs: int
    new: int
    missing: int
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every run of the plan is there."""
        return self.missing == 0


def collect(
    plan: str | Path | Plan,
    output: str | Path,
    *,
    base_url: str | None = None,
    only: str | Sequence[str] | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> Collected:
    """Start each server of a plan, measure it at every point, and save one file a run.

    Call it again with the same folder after an interruption of any kind: finished runs stay,
    the others are done. Runs that failed are recorded with the reason and the rest goes on.

    Parameters
    ----------
    plan : path or Plan
    output : path
        Folder; ``read_traces(output)`` reads it.
    base_url : str, optional
        Measure the server that runs there instead of starting one; for one configuration.
    only : str or sequence of str, optional
        Names of configurations; by default all.
    retry_failed : bool
        Also try again what failed as often as the plan allows.
    progress : bool
        Say on stderr what is going on and how long it will take.

    Returns
    -------
    Collected

    Raises
    ------
    InputError
        If the plan cannot be used, or the folder holds another plan's runs.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> done = bsd.collect("plan.yaml", "runs")  # doctest: +SKIP
    >>> bsd.read_traces("runs").check()  # doctest: +SKIP
    """
    if not isinstance(plan, Plan):
        plan = read_plan(plan)
    chosen = _chosen(plan, only)
    if base_url is not None and len(chosen) > 1:
        raise InputError(
            f"--base-url serves one configuration, the plan has {len(chosen)}; "
            f"choose with --only one of {', '.join(c.name for c in chosen)}"
        )
    folder = Path(output)
    # Before anything is started: every configuration can be described.
    about = {c.name: metadata(c, plan.environment) for c in chosen}
    with locked(folder / PRIVATE), _terminable():
        _same_plan(plan, folder)
        remove_partials(folder)
        ended = end_orphans(folder / PRIVATE)
        session = _Session(plan, folder, chosen, about, retry_failed, progress, base_url)
        if ended:
            session.log("orphans ended", processes=ended)
        return session.run()


def _chosen(plan: Plan, only: str | Sequence[str] | None) -> list[ConfigurationPlan]:
    """Configurations asked for, in random order that the seed fixes."""
    names = [c.name for c in plan.configurations]
    wanted = names if only is None else [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in names:
            raise InputError(f"no configuration {name!r}; the plan has {', '.join(names)}")
    chosen = [c for c in plan.configurations if c.name in wanted]
    random.Random(plan.seed).shuffle(chosen)
    return chosen


def _same_plan(plan: Plan, folder: Path) -> None:
    """Refuse to mix the runs of two plans; more points or configurations are welcome."""
    new: dict[str, Any] = json.loads(plan.model_dump_json())
    settings = {c["name"]: {k: v for k, v in c.items() if k != "points"} for c in _parts(new)}
    path = folder / PRIVATE / "plan.state"
    old = read_state(path)
    for c in _parts(old):
        before = {k: v for k, v in c.items() if k != "points"}
        now = settings.get(c["name"], before)
        changed = [key for key in now if now[key] != before.get(key)]
        if changed:
            raise InputError(
                f"{folder} holds runs of another plan: {changed[0]} of {c['name']} was "
                f"{before.get(changed[0])!r}; collect into another folder"
            )
    try:
        write_state(path, new)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None


def _parts(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return plan.get("configurations", [])


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the collection as Ctrl-C does, so that servers are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Session:
    """One call of `collect`: what is to do, what was done, what went wrong."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        chosen: list[ConfigurationPlan],
        about: dict[str, dict[str, Any]],
        retry_failed: bool,
        progress: bool,
        base_url: str | None,
    ) -> None:
        self.plan, self.folder, self.chosen, self.about = plan, folder, chosen, about
        self.base_url = base_url
        self.private = folder / PRIVATE
        self.failed = {
            c.name: {} if retry_failed else read_state(folder / c.name / "failures.state")
            for c in chosen
        }
        self.new = 0
        todo = [(c, point) for c in chosen for point in self.todo(c)]
        seconds = sum(load.run_s(plan, c, point) for c, point in todo)
        seconds += sum(load.server_s(plan, c) for c in {c.name: c for c, _ in todo}.values())
        self.progress = Progress(seconds, len(todo), progress)
        self.bench = Bench(plan.bench, self.private, folder / "bench.log")

    def file(self, c: ConfigurationPlan, point: PointPlan) -> Path:
        return self.folder / c.name / f"{point.name}.json"

    def todo(self, c: ConfigurationPlan) -> list[PointPlan]:
        """Points without a file that may still be tried, in random order fixed by the seed."""
        points = list(c.points)
        random.Random(f"{self.plan.seed} {c.name}").shuffle(points)
        return [
            p
            for p in points
            if not self.file(c, p).is_file()
            and self.failed[c.name].get(p.name, {}).get("attempts", 0) <= self.plan.bench.retries
        ]

    def run(self) -> Collected:
        try:
            with self.progress:
                for c in self.chosen:
                    self.configuration(c)
        finally:
            self.bench.close()
        every = [(c, p) for c in self.chosen for p in c.points]
        missing = [(c, p) for c, p in every if not self.file(c, p).is_file()]
        names = {f"{c.name}/{p.name}" for c, p in missing} | {
            f"{c.name}/{SERVER}" for c, _ in missing
        }
        reasons = {
            f"{name}/{run}": str(why["reason"])
            for name, runs in self.failed.items()
            for run, why in runs.items()
        }
        failures = {name: why for name, why in sorted(reasons.items()) if name in names}
        return Collected(self.folder, len(every) - len(missing), self.new, len(missing), failures)

    def configuration(self, c: ConfigurationPlan) -> None:
        """Serve one configuration until its points are done or the server failed too often."""
        tries = 0
        expected = load.server_s(self.plan, c)
        while (todo := self.todo(c)) and tries <= self.plan.server.retries:
            tries += 1
            self.progress.say(f"{c.name}: starting")
            try:
                with serving(
                    self.plan.server,
                    c,
                    self.private,
                    self.folder / c.name / "server.log",
                    self.base_url,
                ) as server:
                    self.log("server started", configuration=c.name, startup_s=server.startup_s)
                    probed = self.prepare(c, server, todo)
                    self.progress.advance(expected)
                    expected = 0.0
                    while todo:
                        again = self.point(c, server, todo[0], probed)
                        todo = todo[1:] + (todo[:1] if again else [])
            except Failure as failure:
                self.fail(c, SERVER, str(failure))
            except OSError as error:
                self.fail(c, SERVER, f"{error.strerror or error} ({error.filename})")
        for point in todo:
            self.progress.advance(load.run_s(self.plan, c, point), 1)

    def prepare(self, c: ConfigurationPlan, server: Server, todo: list[PointPlan]) -> float | None:
        """Warm up, and probe the capacity (1/s) unless an earlier session has."""
        bench = self.plan.bench
        if bench.warmup_requests:
            # Short answers: it is the first passes of each kind that are slow.
            self.drive(server, self.job(c, server, bench.probe_prompt, 16, bench.warmup_requests))
        if all(p.load is None and p.concurrency is None for p in todo):
            return None
        path = self.folder / c.name / "probe.state"
        state = read_state(path)
        if not state:
            prompt, output = bench.probe_prompt, bench.probe_output
            result = self.drive(server, self.job(c, server, prompt, output, bench.probe_requests))
            state = {
                "rate_rps": result["completed"] / result["duration"],
                "requests": result["completed"],
                "prompt_tokens": prompt,
                "output_tokens": output,
                "at": _now(),
            }
            write_state(path, state)
            self.log("probed", configuration=c.name, rate_rps=state["rate_rps"])
        return float(state["rate_rps"])

    def job(
        self, c: ConfigurationPlan, server: Server, prompt: int, output: int, requests: int
    ) -> Job:
        return Job(
            server.base_url, served_name(c), c.tokenizer or c.model, prompt, output, requests
        )

    def drive(self, server: Server, job: Job) -> dict[str, Any]:
        """Run the load generator; tell a failed run from a dead server."""
        try:
            return self.bench.run(job)
        except Failure as failure:
            if server.alive:
                raise
            raise ServerDied(f"the server died: {failure}") from None

    def point(
        self, c: ConfigurationPlan, server: Server, point: PointPlan, probed: float | None
    ) -> bool:
        """Measure one point and save it; returns whether it failed and may be tried again."""
        name = point.name
        try:
            kept = self.measure(c, server, point, probed)
            # One line: compact, and whole when it is there at all.
            write_text(self.file(c, point), json.dumps(kept, allow_nan=False) + "\n")
        except (Failure, OSError) as error:
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"the result cannot be written ({error.strerror or error})"
            again = self.fail(c, name, reason) <= self.plan.bench.retries
            if isinstance(error, ServerDied):
                raise
            if not again:
                self.progress.advance(load.run_s(self.plan, c, point), 1)
            return again
        self.new += 1
        self.progress.advance(load.run_s(self.plan, c, point), 1)
        failed = kept.get("failed") or 0
        lost = f", {failed} requests failed" if failed else ""
        self.log("run", configuration=c.name, run=name, failed_requests=failed)
        self.progress.say(f"{c.name}: {name} mean {kept.get('mean_e2el_ms', 0) / 1000:.3g} s{lost}")
        return False

    def measure(
        self, c: ConfigurationPlan, server: Server, point: PointPlan, probed: float | None
    ) -> dict[str, Any]:
        """The load generator's result, what the server counted meanwhile, and who it was."""
        ask = load.load_of(self.plan.bench, point, probed)
        seed = zlib.crc32(f"{self.plan.seed} {c.name} {point.name}".encode())
        job = Job(
            server.base_url,
            served_name(c),
            c.tokenizer or c.model,
            point.prompt,
            point.output,
            ask.requests,
            ask.rate_rps if ask.rate_rps is not None else float("inf"),
            ask.concurrency,
            seed,
        )
        began_at, before, began_s = _now(), engine_metrics.scrape(server.base_url), now_s()
        with engine_metrics.Poll(lambda: engine_metrics.scrape(server.base_url, 5)) as poll:
            result = self.drive(server, job)
        ended_s, after = now_s(), engine_metrics.scrape(server.base_url)
        engine: dict[str, float] = {}
        if before is not None and after is not None:
            fell = engine_metrics.went_backwards(before, after)
            if fell:
                raise Failure(f"the server's counter {fell} went backwards: it restarted meanwhile")
            engine = engine_metrics.deltas(before, after)
            engine |= engine_metrics.occupancy(poll.scrapes, *window(result, began_s, ended_s))
        return slim(
            {
                **result,
                **(engine_metrics.drafting(engine) if self.plan.bench.tool != "vllm" else {}),
                **self.about[c.name],
                "engine": self.plan.environment.engine or f"vllm {server.version or 'unknown'}",
                "engine_version": server.version,
                "engine_arguments": portable(server.arguments),
                "startup_s": server.startup_s,
                "point": point.name,
                "utilization_target": point.load,
                "replicate": point.replicate,
                "seed": seed,
                "order": self._order(),
                "started_at": began_at,
                "probe_rps": probed,
                **{f"engine_{key}": value for key, value in engine.items()},
            }
        )

    def _order(self) -> int:
        """How many runs of this campaign came before."""
        return sum(
            1 for c in self.plan.configurations for p in c.points if self.file(c, p).exists()
        )

    def fail(self, c: ConfigurationPlan, run: str, reason: str) -> int:
        """Record a failure; returns how often this failed so far."""
        entry = self.failed[c.name].setdefault(run, {"attempts": 0})
        entry.update(attempts=entry["attempts"] + 1, reason=reason, at=_now())
        self.progress.say(f"{c.name}: {run}: {reason}")
        try:
            write_state(self.folder / c.name / "failures.state", self.failed[c.name])
        except OSError as error:
            self.progress.say(f"{c.name}: failures.state cannot be written ({error.strerror})")
        self.log("failure", configuration=c.name, run=run, reason=reason)
        return int(entry["attempts"])

    def log(self, event: str, **about: Any) -> None:
        """Add a line to the log; a full disk must not stop what goes on."""
        try:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": _now(), "event": event, **about}) + "\n")
        except OSError as error:
            self.progress.say(f"log.jsonl cannot be written ({error.strerror})")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
