"""Refits as jobs of any executor: kept when done, and done again where a worker died on the way."""

import concurrent.futures as cf
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from traceback import format_exc
from typing import Any

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.fit import PACKAGES, LatencyModel
from bayes_sd.model.file import write_whole
from bayes_sd.model.sample import Refitter
from bayes_sd.progress import with_time_left
from bayes_sd.runs.rows import fingerprint
from bayes_sd.runs.schema import Runs

Keep = str | os.PathLike[str] | None  # a folder
TRIES = 3  # without a job done, before an executor is given up
POOL = ("_max_workers", "_mp_context", "_initializer", "_initargs")  # what makes one like another
CODE = Path(__file__).parents[1]
_compiling = threading.Lock()
_compiled: dict[str, Refitter] = {}  # the last one of this process


@lru_cache(1)  # jobs of one model come together
def _model_key(model: LatencyModel, runs: Runs) -> str:
    code = [path.read_bytes() for path in sorted(CODE.rglob("*.py"))]
    made_of = {"code": code, "versions": [version(name) for name in PACKAGES]}
    rows = [fingerprint(row) for row in runs.table.to_dict("records")]
    return fingerprint({**made_of, "model": asdict(model), "runs": rows})


@dataclass(frozen=True, eq=False)
class Job:
    """``does(refitter, seed, *given, **sampling)`` as plain data; what it returns is JSON."""

    does: Callable[..., Any]
    model: LatencyModel
    runs: Runs
    seed: int
    sampling: Mapping[str, Any]
    given: tuple[Any, ...] = ()

    @cached_property
    def keys(self) -> tuple[str, str]:
        """Hashes of what the refitter and the result depend on; not on how many cores there are."""
        key = _model_key(self.model, self.runs)
        how = sorted((name, value) for name, value in self.sampling.items() if name != "cores")
        does = (self.does.__name__, self.seed, self.given, how)
        return key, fingerprint({"model": key, "does": does})

    def done(self, attempt: int) -> Any:
        """Its result or error, so that only what befalls the executor is raised.

        By the number of the `attempt` Dask sees that it is not to remember the last one.
        """
        key, _ = self.keys
        try:
            with _compiling:
                if key not in _compiled:
                    _compiled.clear()
                    _compiled[key] = self.model.refitter(self.runs)
                refitter = _compiled[key]
            return self.does(refitter, self.seed, *self.given, **self.sampling)
        except Exception as error:
            if not isinstance(error, (InputError, EvidenceError)):
                error.add_note(format_exc())  # which does not leave the process by itself
            return error


def finished(
    groups: Mapping[str, Sequence[Job]], executor: cf.Executor | None, keep: Keep
) -> Iterator[tuple[str, list[Any]]]:
    """Each group of jobs as soon as all of it is done, with its results in their order."""
    jobs = {(name, i): job for name, group in groups.items() for i, job in enumerate(group)}
    results: dict[str, dict[int, Any]] = {name: {} for name in groups}
    for (name, i), result in with_time_left(_each(jobs, executor, keep), len(jobs), "refits"):
        results[name][i] = result
        if len(results[name]) == len(groups[name]):
            yield name, [results[name][i] for i in range(len(groups[name]))]


def _each[K](
    jobs: Mapping[K, Job], executor: cf.Executor | None, keep: Keep
) -> Iterator[tuple[K, Any]]:
    """Results as they come: those kept first, lost ones again."""
    kept: dict[K, Any] = {}
    files = {k: Path(keep or "") / f"{job.keys[1]}.json" for k, job in jobs.items()}
    if keep is not None:
        try:
            Path(keep).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"<<keep>> {keep}: cannot be a folder ({error}).") from None
        for k, file in files.items():
            with suppress(OSError, ValueError):  # not there, or damaged
                kept[k] = json.loads(file.read_text())
    yield from kept.items()
    rest = {k: job for k, job in jobs.items() if k not in kept}
    failed, lost = 0, Exception()
    with ExitStack() as own:
        # A thread even for one at a time: what is interrupted there is not taken for a result.
        executor = executor or own.enter_context(cf.ThreadPoolExecutor(1))
        while rest:
            try:
                futures = {executor.submit(job.done, failed): k for k, job in rest.items()}
            except Exception as error:
                futures, lost = {}, error
            for future in futures:
                own.callback(future.cancel)
            failed += 1
            for future in cf.as_completed(futures):
                try:
                    result = future.result()
                except Exception as error:
                    lost = error
                    continue
                if isinstance(result, Exception):
                    raise result
                k, failed = futures[future], 0
                if keep is not None:
                    write_whole(files[k], json.dumps(result).encode())
                del rest[k]
                yield k, result
            if failed == TRIES:
                done = f"{len(jobs) - len(rest)} of {len(jobs)} refits were done and are "
                done += f"kept in {keep}" if keep else "lost, as <<keep>> named no folder for them"
                raise InputError(f"The executor died ({lost!r}); {done}.")
            if rest and isinstance(executor, cf.ProcessPoolExecutor):  # broken, it takes no more
                like = (getattr(executor, name) for name in POOL)
                executor = own.enter_context(cf.ProcessPoolExecutor(*like))
