"""One reader for everything that was measured: files are told apart by their content."""

import glob
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bayes_sd.errors import InputError
from bayes_sd.runs import aiperf, guidellm, metrics, table, vllm
from bayes_sd.runs.config import KNOWN, canonical, merge
from bayes_sd.runs.rows import run_id
from bayes_sd.runs.schema import Runs, tidy

PathLike = str | Path
Sidecar = list[tuple[str, Mapping[str, Any]]]
Rows = Iterator[tuple[int, dict[str, Any] | InputError]]
# What a file in a folder is called if it may hold runs.
PATTERNS = ("*.json", "*.csv", "*.prom", "*.txt")
TOOLS = {"vLLM": vllm, "GuideLLM": guidellm, "AIPerf": aiperf}
NEEDED = (
    "needed is a JSON result of vllm bench serve, GuideLLM or AIPerf, a CSV table of runs, "
    "or metrics of a vLLM server"
)
# Measurements shipped with bayes_sd, in the wheel or in the checkout; one is always there.
PLACES = (Path(__file__).parents[1] / "_traces", Path(__file__).parents[2] / "traces")
CAMPAIGN = "vllm-cpu"


def read(
    paths: PathLike | pd.DataFrame | Iterable[PathLike],
    *,
    config: PathLike | None = None,
    environment: str | None = None,
    columns: Mapping[str, table.Mapped] | None = None,
    window_s: float = 300.0,
    **constants: Any,
) -> Runs:
    """Read benchmark results, tables of runs and server metrics, told apart by their content.

    Parameters
    ----------
    paths : path, folder, glob pattern, several of them, or pandas.DataFrame
        Results of ``vllm bench serve``, ``vllm bench sweep serve``, GuideLLM and AIPerf; CSV
        tables with a run a row; scrapes of ``/metrics``, each timed by its file name (seconds since
        1970) or a line ``# time SECONDS`` before it, and answers of Prometheus to
        ``query_range``, which are one record together. A folder means every ``*.json``, ``*.csv``,
        ``*.prom`` and ``*.txt`` below it.
    config : path, optional
        YAML (file name or pattern to keys) or CSV (column ``file`` and one column a key) with
        the configuration of files that do not state it.
    environment : str, optional
        Name of hardware and engine for all files, instead of what they state.
    columns : mapping, optional
        For tables: our column name to theirs, or to (theirs, unit) with unit "s", "ms", "us", "%"
        or "1". Columns that have our names need no entry. Latencies are ``e2e_mean_s``,
        ``e2e_std_s``, ``e2e_p50_s`` ... ``tpot_p99_s``, or ``e2e_log_mean`` and ``e2e_log_var``.
    window_s : float
        For metrics: length of a window in seconds; each steady window is a run.
    **constants
        Configuration of all files: ``verifier``, ``verifier_params`` (count), ``draft_tokens`` ...
        For tables also any other column, in our unit.

    Returns
    -------
    Runs
        Files, rows and windows that cannot be used are in ``set_aside`` with the reason.

    Raises
    ------
    InputError
        If there is no such path, a name is unknown, or no run can be used.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> table = pd.DataFrame({
    ...     "rps": [1.0, 2.0], "n": [60, 120], "lat_ms": [900.0, 1300.0], "sd_ms": [80.0, 150.0],
    ... })
    >>> runs = bsd.read(
    ...     table,
    ...     columns={"rate_rps": "rps", "requests": "n",
    ...              "e2e_mean_s": ("lat_ms", "ms"), "e2e_std_s": ("sd_ms", "ms")},
    ...     verifier="m", verifier_params=8e9, draft_tokens=0, prompt_tokens=512, output_tokens=128,
    ... )
    >>> runs.table.e2e_mean_s.tolist()
    [0.9, 1.3]
    """
    if not (math.isfinite(window_s) and window_s > 0):
        raise InputError(f"window_s must be a positive number of seconds, got {window_s!r}")
    for name in constants:
        if name not in (*KNOWN, *table.INPUTS, *table.POSITIONS):
            raise InputError(f"unknown argument {name!r}; known are {', '.join(KNOWN)}")
    for_tables = {k: v for k, v in constants.items() if k not in KNOWN}
    sources = [paths] if isinstance(paths, pd.DataFrame) else find_files(paths, leave_out=config)
    sidecar = [] if config is None else read_sidecar(config, sources)
    given = _Given(sidecar, canonical(constants), environment, columns or {}, for_tables)
    result = _Result([], [])
    kinds: dict[Path, str] = {}
    scrapes: dict[Path, Any] = {}
    for source in sources:
        path = Path("table") if isinstance(source, pd.DataFrame) else source
        try:
            kinds[path], content = _content(source)
            if kinds[path] == "metrics":
                scrapes[path] = content
            else:
                result.add(str(path), given.runs_of(kinds[path], content, path))
        except InputError as error:
            result.leave_out(str(path), error)
    if scrapes:
        first = next(iter(scrapes))
        values = merge((str(path), given.configuration(path, {})) for path in scrapes)
        place = str(first if len(scrapes) == 1 else first.parent)
        result.add(place, metrics.runs_of(scrapes, values, window_s))
    # GuideLLM and AIPerf write their results as CSV too, beside the JSON that is read.
    reports = {p.with_suffix(".csv") for p, kind in kinds.items() if kind in ("GuideLLM", "AIPerf")}
    aside = [bad for bad in result.aside if Path(bad["source"]) not in reports]
    if not result.rows:
        raise InputError(_nothing(aside))
    if "table" not in kinds.values() and (columns or for_tables):
        name = "columns" if columns else next(iter(for_tables))
        raise InputError(f"{name} is for tables only, and no table was read")
    return tidy(result.rows, aside)


@dataclass(frozen=True)
class _Result:
    """Rows of the run table, and what is set aside."""

    rows: list[dict[str, Any]]
    aside: list[dict[str, Any]]

    def add(self, source: str, runs: Rows) -> None:
        """Runs of a source, and why others cannot be used."""
        try:
            for index, run in runs:
                if isinstance(run, InputError):
                    self.leave_out(source, run, index)
                else:
                    self.rows.append({"run_id": run_id(run), **run, "source": source, "row": index})
        except InputError as error:
            self.leave_out(source, error)

    def leave_out(self, source: str, error: InputError, index: int = -1) -> None:
        """Set aside a run, or all of a source."""
        reason = str(error).removeprefix(f"{source}: ")
        self.aside.append({"source": source, "row": index, "reason": reason})


def _nothing(aside: list[dict[str, Any]]) -> str:
    """Why no run was read."""
    places = [f"{bad['source']} row {bad['row']}".removesuffix(" row -1") for bad in aside]
    reasons = [f"{place}: {bad['reason']}" for place, bad in zip(places, aside, strict=True)]
    if len(reasons) == 1:
        return reasons[0]
    what = "files" if all(bad["row"] < 0 for bad in aside) else "runs"
    return f"none of {len(reasons)} {what} can be used: {'; '.join(reasons[:3])}"


@dataclass(frozen=True)
class _Given:
    """What the caller says about the servers, and about tables."""

    sidecar: Sidecar
    arguments: Mapping[str, Any]
    environment: str | None
    columns: Mapping[str, table.Mapped]
    for_tables: Mapping[str, Any]

    def configuration(self, path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Joined with what a file states; InputError if they differ."""
        sidecar = [(f"the sidecar's {p!r}", keys) for p, keys in self.sidecar if _matches(p, path)]
        merged = merge([("the file", stated), *sidecar, ("the arguments", self.arguments)])
        return merged if self.environment is None else merged | {"environment": self.environment}

    def runs_of(self, kind: str, content: Any, path: Path) -> Rows:
        """Runs of a table or of a tool's result."""
        if kind == "table":
            constants = {**self.configuration(path, {}), **self.for_tables}
            return table.runs_of(content, self.columns, constants)
        values = self.configuration(path, TOOLS[kind].stated(content))
        return TOOLS[kind].runs_of(content, values, path)


def _content(source: Path | pd.DataFrame) -> tuple[str, Any]:
    """Kind of a source and what is in it."""
    if isinstance(source, pd.DataFrame):
        return "table", table.load_table(source)[0]
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"is not text; {NEEDED}") from None
    if not text.strip():
        raise InputError(f"is empty; {NEEDED}")
    if text.lstrip().startswith(("{", "[")):
        data = _json(text)
        if metrics.is_answer(data):
            return "metrics", data
        for name, tool in TOOLS.items():
            if tool.is_result(data):
                return name, data
        keys = ", ".join(map(str, list(data)[:5]))
        raise InputError(f"is JSON of no known kind (it has {keys or 'nothing'}); {NEEDED}")
    if metrics.is_scrape(text):
        return "metrics", text
    if "," not in text.lstrip().splitlines()[0]:
        raise InputError(f"is of no known kind; {NEEDED}")
    return "table", table.load_table(source)[0]


def _json(text: str) -> dict[str, Any]:
    """The JSON object of a text."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"is not complete JSON ({error.msg} at line {error.lineno})"
        raise InputError(f"{problem}; {NEEDED}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise InputError(f"is JSON of an absurd size or depth; {NEEDED}") from None
    if not isinstance(data, dict):
        raise InputError(f"is not a JSON object; {NEEDED}")
    return data


def find_files(
    paths: PathLike | Iterable[PathLike], leave_out: PathLike | None = None
) -> list[Path]:
    """Files meant by paths, folders and patterns, each once, in a stable order."""
    if isinstance(paths, str | Path) or not isinstance(paths, Iterable):
        paths = [paths]
    files: dict[Path, None] = {}
    for item in paths:
        if not isinstance(item, str | Path):
            raise InputError(f"{item!r}: a path, folder or glob pattern is needed")
        path = Path(item)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [p for p in sorted(path.rglob("*")) if p.is_file() and _may_hold_runs(p)]
            if leave_out is not None:
                matches = [p for p in matches if p.resolve() != Path(leave_out).resolve()]
            if not matches:
                raise InputError(f"{path}: the folder has no {', '.join(PATTERNS)} with runs")
        elif glob.has_magic(str(item)):
            matches = sorted(map(Path, glob.glob(str(item), recursive=True)))
            matches = [p for p in matches if p.is_file()]
            if not matches:
                raise InputError(f"{item}: no file matches the pattern")
        else:
            raise InputError(f"{path}: no such file or folder")
        files |= dict.fromkeys(matches)
    if not files:
        raise InputError("no paths are given; give files, folders or glob patterns")
    return list(files)


def _may_hold_runs(path: Path) -> bool:
    """Whether a file of a folder is looked into; the others are known to hold no runs."""
    known = any(fnmatch(path.name, pattern) for pattern in PATTERNS)
    return known and not (vllm.companion(path) or aiperf.companion(path))


def _matches(pattern: str, path: Path) -> bool:
    full = path.as_posix()
    return fnmatch(path.name, pattern) or fnmatch(full, pattern) or fnmatch(full, f"*/{pattern}")


def read_sidecar(path: PathLike, files: list[Any]) -> Sidecar:
    """Patterns of a sidecar and the configuration keys of the files they match."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such sidecar file; YAML or CSV is needed")
    if path.suffix.lower() == ".csv":
        try:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        except ValueError as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{path}: is not a CSV table ({line})") from None
        if "file" not in rows.columns:
            have = ", ".join(rows.columns)
            raise InputError(f"{path}: a column 'file' is needed, but the columns are {have}")
        entries: list[Any] = [(row.pop("file"), row) for row in rows.to_dict("records")]
    else:
        entries = list(load_yaml(path).items())
        if not all(isinstance(keys, dict) for _, keys in entries):
            raise InputError(f"{path}: must map file names or patterns to configuration keys")
    for pattern, keys in entries:
        for key in keys:
            if key not in KNOWN:
                raise InputError(f"{path}: unknown key {key!r}; known are {', '.join(KNOWN)}")
        if not any(_matches(str(pattern), file) for file in files if isinstance(file, Path)):
            raise InputError(f"{path}: {pattern!r} matches none of the {len(files)} files")
    return [(str(pattern), canonical(keys)) for pattern, keys in entries]


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once: of two, PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; YAMLError if a key is there twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} is given twice below line {line}")
        return super().construct_mapping(node, deep)


def load_yaml(path: PathLike) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = (str(error).splitlines() or ["nested too deep"])[0]
        raise InputError(f"{path}: is not YAML ({line})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: must map names to values, in YAML")
    return {str(key): value for key, value in data.items()}


def corpus(campaign: str = "") -> Path:
    """Folder of all shipped measurements, or of one campaign."""
    for place in PLACES:
        if (place / CAMPAIGN).is_dir() and (place / campaign).is_dir():
            return place / campaign
    raise InputError(f"the shipped runs {campaign!r} were not found beside the package")
