"""One reader for everything that was measured: files are told apart by their content."""

import glob
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bayes_sd.errors import InputError, shown
from bayes_sd.runs import aiperf, guidellm, log_files, logs, metrics, table, vllm
from bayes_sd.runs.check import place
from bayes_sd.runs.config import KNOWN, Values, canonical, merge
from bayes_sd.runs.rows import Rows, run_id
from bayes_sd.runs.schema import Runs, tidy

PathLike = str | Path
Sidecar = list[tuple[str, Values]]
LONG_NUMBER = re.compile(r"\b(0x)?[\da-fA-F_]{500}")  # Python would not print it
# What a file in a folder is called if it may hold runs.
PATTERNS = ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.prom", "*.txt")
TOOLS = {"vLLM": vllm, "GuideLLM": guidellm, "AIPerf": aiperf}
# Tools whose results are not read, and what is written in those of no other.
UNREAD = {
    "TensorRT-LLM's trtllm-bench": ('"engine"', '"world_info"', '"request_info"'),
    "GenAI-Perf": ('"request_latency"', '"input_config"'),
    "GenAI-Perf's perf_analyzer": ('"experiments"', '"service_kind"'),
    "LLMPerf": ("end_to_end_latency_s", "ttft_s"),
    "vllm bench latency": ('"avg_latency"', '"latencies"', '"percentiles"'),
    "vllm bench throughput": ('"elapsed_time"', '"requests_per_second"', '"tokens_per_second"'),
    "SGLang's bench_offline_throughput": ('"successful_requests"', '"total_latency"'),
    "SGLang's bench_one_batch": ('"batch_size"', '"input_len"', '"overall_throughput"'),
    "llama.cpp's llama-bench": ("build_commit", "n_prompt", "n_gen"),
    "MLPerf's loadgen": ("MLPerf Results Summary",),
}
NEEDED = (
    "needed is a JSON result of vllm bench serve, SGLang's bench_serving, GuideLLM or AIPerf, "
    "a CSV table of runs, or metrics of a vLLM server"
)
# Measurements shipped with bayes_sd, in the wheel or in the checkout; one is always there.
PLACES = (Path(__file__).parents[1] / "_traces", Path(__file__).parents[2] / "traces")
CAMPAIGN = "vllm-cpu"


def read(
    paths: Any,
    *,
    config: PathLike | None = None,
    environment: str | None = None,
    columns: Mapping[str, table.Mapped] | None = None,
    window_s: float = 300.0,
    **constants: Any,
) -> Runs:
    """Read benchmark results, tables of runs and server metrics, told apart by their content.

    Files, rows and windows that cannot be used are in ``set_aside`` with the reason.

    Parameters
    ----------
    paths : path, folder, glob pattern, several of them, pandas.DataFrame or ibis.Table
        Results of ``vllm bench serve`` (one or several in a file), ``vllm bench sweep serve``,
        SGLang's ``bench_serving``, GuideLLM and AIPerf; tables (CSV, JSON lines) with a run a row;
        scrapes of ``/metrics``, timed by the file name (seconds since 1970) or a line ``# time
        SECONDS`` before each, or answers to ``query_range``, all of them one record; logs (Parquet,
        CSV, JSON lines, an Ibis table) with a request a row: ``timestamp`` of its arrival (as in
        :meth:`bayes_sd.Load.read`), ``prompt_tokens``, ``output_tokens``, ``e2e_s`` (missing: still
        in flight), if known ``ttft_s``, ``drafts``, ``drafted_tokens``, ``accepted_tokens``. A
        folder means all that is below it; text files may be packed with gzip.
    config : path, optional
        YAML (file name or pattern to keys) or CSV (column ``file`` and one column a key) with
        the configuration of files that do not state it.
    environment : str, optional
        Name of hardware and engine for all files, instead of what they state.
    columns : mapping, optional
        For tables and logs: our column name to theirs, or to (theirs, unit) with unit "s", "ms",
        "us", "ns", "%" or "1". Ours are e.g. ``e2e_mean_s``, ``e2e_std_s``, ``ttft_p50_s`` or
        ``e2e_log_mean``; ``output_tokens_per_s`` at a concurrency stands in for the latency,
        ``acceptance_length`` (bonus token included) for counts of drafts.
    window_s : float
        For metrics and logs: seconds of a window; each steady window is a run.
    **constants
        Configuration of all files: ``verifier``, ``verifier_params`` (count), ``draft_tokens``,
        ``machine`` (see :class:`bayes_sd.Machine`), ``gpus`` ...
        For tables also any other column, in our unit.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> table = pd.DataFrame({"rps": [1.0, 2.0], "n": [60, 120], "lat_ms": [900.0, 1300.0]})
    >>> runs = bsd.read(
    ...     table,
    ...     columns={"rate_rps": "rps", "requests": "n", "e2e_mean_s": ("lat_ms", "ms")},
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
    mapping = table.factors_of(columns)
    is_table = isinstance(paths, pd.DataFrame) or log_files.is_lazy(paths)
    sources = [paths] if is_table else find_files(paths, leave_out=config)
    sidecar = [] if config is None else read_sidecar(config, sources)
    reader = _Reader(sidecar, canonical(constants), environment, [], [])
    kinds: dict[str, str] = {}
    records: dict[tuple[str, str], dict[Path, Any]] = {}  # of several files together
    for source in sources:
        path = Path("table") if is_table else source
        name = shown(str(path))
        try:
            kinds[name], contents = _content(source, name, mapping)
            if kinds[name] in ("metrics", "log"):
                suffix = Path(path.name.removesuffix(".gz")).suffix if kinds[name] == "log" else ""
                records.setdefault((kinds[name], suffix), {})[path] = contents[0]
            elif kinds[name] == "table":
                values = reader.configuration(path, {}) | for_tables
                reader.add(name, table.runs_of(contents[0], mapping, values))
            else:
                for i, data in enumerate(contents):
                    runs = reader.runs_of(TOOLS[kinds[name]], data, path)
                    reader.add(name, runs, i if len(contents) > 1 else -1)
        except InputError as error:
            reader.leave_out(name, error)
    for (kind, _), parts in records.items():
        first = next(iter(parts))
        name = shown(str(first if len(parts) == 1 else first.parent))
        try:
            values = merge((str(path), reader.configuration(path, {})) for path in parts)
            if kind == "metrics":
                reader.add(name, metrics.runs_of(parts, values, window_s))
            else:
                log = logs.Log(name, list(parts.values()), mapping, "e2e_s")
                reader.add(name, log.runs(values, window_s))
                reader.aside.extend(log.aside)
        except InputError as error:
            reader.leave_out(name, error)
    # GuideLLM and AIPerf write their results as CSV too, beside the JSON that is read.
    reports = {name for name, kind in kinds.items() if kind in ("GuideLLM", "AIPerf")}
    copies = {str(Path(name).with_suffix(".csv")) for name in reports}
    aside = [bad for bad in reader.aside if bad["source"] not in copies]
    if not reader.rows:
        reasons = [f"{place(bad['source'], bad['row'])}: {bad['reason']}" for bad in aside]
        what = "files" if all(bad["row"] < 0 for bad in aside) else "runs"
        several = f"none of {len(reasons)} {what} can be used: " if len(reasons) > 1 else ""
        raise InputError(several + "; ".join(reasons[:3]))
    tables = {*kinds.values()} & {"table", "log"}
    if (columns and not tables) or (for_tables and "table" not in tables):
        name = "columns" if columns and not tables else next(iter(for_tables))
        raise InputError(f"{name} is for tables only, and no table was read")
    return tidy(reader.rows, aside)


@dataclass(frozen=True)
class _Reader:
    """What the caller says about the servers; rows of the run table, and what is set aside."""

    sidecar: Sidecar
    arguments: Values
    environment: str | None
    rows: list[dict[str, Any]]
    aside: list[dict[str, Any]]

    def configuration(self, path: Path, stated: Values) -> dict[str, Any]:
        """Joined with what a file states; InputError if they differ."""
        sidecar = [(f"the sidecar's {p!r}", keys) for p, keys in self.sidecar if _matches(p, path)]
        merged = merge([("the file", stated), *sidecar, ("the arguments", self.arguments)])
        return merged if self.environment is None else merged | {"environment": self.environment}

    def runs_of(self, tool: Any, data: Values, path: Path) -> Rows:
        """Runs of one result of a tool."""
        yield from tool.runs_of(data, self.configuration(path, tool.stated(data)), path)

    def add(self, source: str, runs: Rows, at: int = -1) -> None:
        """Runs of a source, or of its result number `at`, and why others cannot be used."""
        try:
            for i, run in runs:
                row = max(i, at)
                if isinstance(run, InputError):
                    self.leave_out(source, run, row)
                else:
                    self.rows.append({"run_id": run_id(run), **run, "source": source, "row": row})
        except InputError as error:
            self.leave_out(source, error, at)

    def leave_out(self, source: str, error: InputError, row: int = -1) -> None:
        """Set aside a run, or all of a source."""
        reason = str(error).removeprefix(f"{source}: ")
        self.aside.append({"source": source, "row": row, "reason": reason})


def _content(source: Any, name: str, columns: table.Columns) -> tuple[str, list[Any]]:
    """Kind of a source and what is in it; of a log, which may be large, the source itself."""
    if log_files.is_log(source, columns):
        return "log", [source]
    if isinstance(source, pd.DataFrame):
        return "table", [table.load_table(source, name)]
    try:
        with table.opened(source) as file:
            text = file.read().decode("utf-8-sig").strip()
    except table.BROKEN as error:
        raise InputError(f"cannot be read ({table.why(error)})") from None
    except UnicodeDecodeError:
        raise InputError(f"is not text; {NEEDED}") from None
    header, what = text.partition("\n")[0], "of no known kind" if text else "empty"
    if text.startswith(("{", "[")):
        data = table.json_objects(text)
        known = {"metrics": metrics.is_answer} | {n: tool.is_result for n, tool in TOOLS.items()}
        if kind := next((kind for kind, fits in known.items() if fits(data[0])), ""):
            return kind, data
        theirs = {header for header, _ in columns.values()}
        if data[0].keys() & {"e2e_mean_s", table.THROUGHPUT, *theirs}:
            return "table", [table.load_table(source, name)]
        keys = ", ".join(str(key)[:40] for key in list(data[0])[:5])
        header, what = "", f"JSON of no known kind (it has {keys or 'nothing'})"
    elif metrics.SCRAPE.search(text):
        return "metrics", [text]
    for other, signs in UNREAD.items():
        if all(sign in text for sign in signs):
            raise InputError(f"is a result of {other}, which is not read; {NEEDED}")
    if "," not in header:
        other = next((x for x in ";\t|" if header.count(x) > 1), "")
        rule = f"a table has commas between its cells, not {other!r}" if other else NEEDED
        raise InputError(f"is {what}; {rule}")
    return "table", [table.load_table(source, name)]


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
        path, matches = Path(item), [Path(item)]
        problem = "no such file or folder"
        if path.is_dir():
            config = None if leave_out is None else Path(leave_out).resolve()
            below = [p for p in sorted(path.rglob("*")) if p.resolve() != config]
            named = [(p, p.name.removesuffix(".gz")) for p in below]
            matches = [p for p, name in named if any(fnmatch(name, each) for each in PATTERNS)]
            matches = [p for p in matches if not (vllm.companion(p) or aiperf.companion(p))]
            problem = f"the folder has no {', '.join(PATTERNS)} with runs"
        elif glob.has_magic(str(item)) and not path.exists():
            matches = sorted(map(Path, glob.glob(str(item), recursive=True)))
            problem = "no file matches the pattern"
        matches = [p for p in matches if p.is_file()]
        if not matches:
            raise InputError(f"{item}: {problem}")
        files |= dict.fromkeys(matches)
    if not files:
        raise InputError("no paths are given; give files, folders or glob patterns")
    return list(files)


def _matches(pattern: str, path: Path) -> bool:
    full = path.as_posix()
    return fnmatch(path.name, pattern) or fnmatch(full, pattern) or fnmatch(full, f"*/{pattern}")


def read_sidecar(path: PathLike, files: list[Any]) -> Sidecar:
    """Patterns of a sidecar and the configuration keys of the files they match."""
    if Path(path).suffix.lower() == ".csv":
        rows = table.load_table(path, shown(str(path)), dtype=str, keep_default_na=False)
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


class _StrictLoader(yaml.SafeLoader):
    """YAML whose keys stand once (of two, PyYAML silently takes the last) and are text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; YAMLError if a key is there twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} is given twice below line {line}")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """A scalar's text; ValueError where it holds a lone surrogate, which no file can keep."""
        text = super().construct_scalar(node)
        text.encode()
        return text


def load_yaml(path: PathLike) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if LONG_NUMBER.search(text):
            raise ValueError("a number has hundreds of digits")
        data = yaml.load(text, _StrictLoader)
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
    for folder in PLACES:
        if (folder / CAMPAIGN).is_dir() and (folder / campaign).is_dir():
            return folder / campaign
    raise InputError(f"the shipped runs {campaign!r} were not found beside the package")
