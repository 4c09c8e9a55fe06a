"""Benchmark results from files, folders and patterns."""

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bayes_sd.errors import InputError
from bayes_sd.traces.config import KNOWN, canonical, merge
from bayes_sd.traces.rows import fingerprint
from bayes_sd.traces.schema import COLUMNS, Traces, tidy
from bayes_sd.traces.sidecar import Sidecar, read_sidecar
from bayes_sd.traces.vllm_bench import run_of
from bayes_sd.traces.vllm_record import load

PathLike = str | Path
# What the file says about who served it may be wrong; what was measured makes it the same run.
_NOT_MEASURED = frozenset(COLUMNS) - {
    name
    for name, column in COLUMNS.items()
    if name.startswith(("e2e_", "ttft_", "tpot_"))
    or name in ("duration_s", "requests", "failed", "prompt_tokens", "output_tokens")
}


def read_traces(
    paths: PathLike | Iterable[PathLike],
    *,
    config: PathLike | None = None,
    environment: str | None = None,
    **arguments: Any,
) -> Traces:
    """Read results of ``vllm bench serve``.

    Parameters
    ----------
    paths : path, folder, glob pattern, or several of them
        A folder means every ``*.json`` below it.
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
            row = _row(file, sidecar, given, environment)
        except InputError as error:
            aside.append({"source": str(file), "row": -1, "reason": str(error)})
        else:
            rows.append(row)
    if not rows:
        reasons = "; ".join(f"{bad['source']}: {bad['reason']}" for bad in aside[:3])
        if len(aside) == 1:
            raise InputError(reasons)
        raise InputError(f"none of {len(aside)} files can be used: {reasons}")
    return tidy(rows, aside)


def _row(
    file: Path,
    sidecar: Sidecar | None,
    given: Mapping[str, Any],
    environment: str | None,
) -> dict[str, Any]:
    data = load(file)
    layers: list[tuple[str, Mapping[str, Any]]] = [("the file", canonical(data))]
    if sidecar is not None:
        layers += [(f"the sidecar's {pattern!r}", keys) for pattern, keys in sidecar.of(file)]
    values = merge([*layers, ("the arguments", given)])
    if environment is not None:
        values["environment"] = environment
    row = run_of(data, values)
    return row | {
        "run_id": fingerprint(row, ignore=_NOT_MEASURED),
        "source": str(file),
        "row": -1,
    }


def find_files(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """Files meant by paths, folders and patterns, each once, in a stable order.

    Raises
    ------
    InputError
        If a path does not exist, a folder has no JSON file or a pattern matches none.
    """
    wanted = [paths] if isinstance(paths, str | Path) else list(paths)
    if not wanted:
        raise InputError("no paths are given; give files, folders or glob patterns")
    found: dict[Path, None] = {}
    for item in wanted:
        path = Path(item)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(p for p in path.rglob("*.json") if p.is_file())
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
