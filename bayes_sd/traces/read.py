"""Benchmark results from files, folders and patterns."""

import glob
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bayes_sd.errors import InputError
from bayes_sd.traces import aiperf, guidellm, vllm_bench
from bayes_sd.traces.config import KNOWN, canonical, merge
from bayes_sd.traces.json_file import read_object
from bayes_sd.traces.rows import fingerprint
from bayes_sd.traces.schema import COLUMNS, Traces, tidy
from bayes_sd.traces.sidecar import Sidecar, read_sidecar
from bayes_sd.traces.vllm_record import check_result

PathLike = str | Path
NEEDED = "a JSON result of vllm bench serve, GuideLLM or AIPerf"
# What the file says about who served it may be wrong; what was measured makes it the same run.
NOT_MEASURED = frozenset(COLUMNS) - {
    name
    for name, column in COLUMNS.items()
    if name.startswith(("e2e_", "ttft_", "tpot_"))
    or name in ("duration_s", "requests", "failed")
    or name.startswith(("prompt_tokens", "output_tokens"))
}


def read_traces(
    paths: PathLike | Iterable[PathLike],
    *,
    config: PathLike | None = None,
    environment: str | None = None,
    **arguments: Any,
) -> Traces:
    """Read results of ``vllm bench serve``, GuideLLM and AIPerf, told apart by their content.

    Parameters
    ----------
    paths : path, folder, glob pattern, or several of them
        A folder means every ``*.json`` below it. A GuideLLM report is a run a benchmark.
    config : path, optional
        YAML (file name or pattern to keys) or CSV (column ``file`` and one column a key) with
        the configuration of files whose metadata lacks it.
    environment : str, optional
        Name of hardware and engine for all files, instead of the metadata's.
    **arguments
        Configuration of all files: ``verifier``, ``verifier_params`` (count), ``draft_tokens``...

    Returns
    -------
    Traces
        Files that cannot be used are in ``set_aside`` with the reason.

    Raises
    ------
    InputError
        If there is no such path, an argument or sidecar key is unknown, or no file is usable.

    Examples
    --------
    >>> traces = read_traces("runs/*.json", verifier_params=8e9, drafter="eagle")
    >>> print(traces.check())
    """
    for name in arguments:
        if name not in KNOWN:
            raise InputError(f"unknown argument {name!r}; known are {', '.join(KNOWN)}")
    given = canonical(arguments)
    files = find_files(paths)
    sidecar = None if config is None else read_sidecar(config, files)
    rows: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    for file in files:
        try:
            for index, run in _runs(file, sidecar, given, environment):
                where = {"source": str(file), "row": index}
                if isinstance(run, InputError):
                    aside.append({**where, "reason": str(run)})
                else:
                    run_id = fingerprint(run, ignore=NOT_MEASURED)
                    rows.append({**run, "run_id": run_id, **where})
        except InputError as error:
            aside.append({"source": str(file), "row": -1, "reason": str(error)})
    if not rows:
        reasons = "; ".join(f"{_where(bad)}: {bad['reason']}" for bad in aside[:3])
        if len(aside) == 1:
            raise InputError(reasons)
        what = "files" if all(bad["row"] < 0 for bad in aside) else "runs"
        raise InputError(f"none of {len(aside)} {what} can be used: {reasons}")
    return tidy(rows, aside)


def _where(bad: Mapping[str, Any]) -> str:
    return bad["source"] if bad["row"] < 0 else f"{bad['source']} row {bad['row']}"


def _runs(
    file: Path,
    sidecar: Sidecar | None,
    given: Mapping[str, Any],
    environment: str | None,
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Runs of a file: row inside it (-1 if it holds one run) and the run, or why it has none."""
    data = read_object(file, NEEDED)
    labels = guidellm.stated(data) if guidellm.is_report(data) else data
    layers: list[tuple[str, Mapping[str, Any]]] = [("the file", canonical(labels))]
    if sidecar is not None:
        layers += [(f"the sidecar's {pattern!r}", keys) for pattern, keys in sidecar.of(file)]
    values = merge([*layers, ("the arguments", given)])
    if environment is not None:
        values["environment"] = environment
    if guidellm.is_report(data):
        yield from guidellm.runs_of(data, values)
    elif aiperf.is_export(data):
        yield from aiperf.runs_of(data, values, file)
    elif "resultType" in str(data.get("data"))[:100]:
        raise InputError("is an export of Prometheus; read it with read_metrics")
    else:
        check_result(data)
        yield -1, vllm_bench.run_of(data, values)


def find_files(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """Files meant by paths, folders and patterns, each once, in a stable order.

    Raises
    ------
    InputError
        If a path does not exist, a folder has no JSON file or a pattern matches none.
    """
    if isinstance(paths, str | Path) or not isinstance(paths, Iterable):
        paths = [paths]
    wanted = list(paths)
    if not wanted:
        raise InputError("no paths are given; give files, folders or glob patterns")
    found: dict[Path, None] = {}
    for item in wanted:
        if not isinstance(item, str | Path):
            raise InputError(f"{item!r}: a path, folder or glob pattern is needed")
        path = Path(item)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(p for p in path.rglob("*.json") if p.is_file())
            matches = [p for p in matches if not aiperf.companion(p)]
            if not matches:
                raise InputError(f"{path}: the folder has no .json file")
        elif glob.has_magic(str(item)):
            matches = sorted(map(Path, glob.glob(str(item), recursive=True)))
            matches = [p for p in matches if p.is_file()]
            if not matches:
                raise InputError(f"{item}: no file matches the pattern")
        else:
            raise InputError(f"{path}: no such file or folder")
        found |= dict.fromkeys(matches)
    return list(found)
