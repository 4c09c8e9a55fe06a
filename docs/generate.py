"""What the site takes from the code when it is built: commands, columns, notebooks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from bayes_sd import __version__
from bayes_sd.cli.app import PANELS, app
from bayes_sd.runs.config import Configuration
from bayes_sd.runs.rows import Workload
from bayes_sd.runs.schema import COLUMNS, DTYPES

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
JSON_TYPES = {"str": "string", "int64": "integer", "bool": "boolean", "float64": "number"}
# By the end of a column's name, the first that fits; what fits none is a count, a share or a text.
UNITS = {
    "log_var_n_eff": "requests",
    "log_mean": "log s",
    "log_var": "",
    "gb_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "kv_bytes": "bytes",
    "weight_bits": "bits",
    "_rps": "requests/s",
    "per_cycle": "tokens",
    "tokens": "tokens",
    "tokens_sd": "tokens",
    "accepted_j": "tokens",
    "requests": "requests",
    "failed": "requests",
    "incomplete": "requests",
    "in_flight": "requests",
    "concurrency": "requests",
    "_s": "s",
}


def unit(column: str) -> str:
    """Unit of a column; empty where it has none."""
    return next((unit for end, unit in UNITS.items() if column.endswith(end)), "")


def schema() -> dict[str, Any]:
    """JSON schema of the records of a run table: `runs.table.to_json(orient="records")`."""
    listed = [kind.model_json_schema()["properties"] for kind in (Configuration, Workload)]
    named = {name: field for fields in listed for name, field in fields.items()}
    properties: dict[str, Any] = {}
    for name, meaning in COLUMNS.items():
        dtype = "int64" if name == "accepted_j" else DTYPES.get(name, "float64")
        kind = JSON_TYPES[dtype]
        missing = kind == "number" or name == "accepted_j"
        properties[name] = {
            "type": [kind, "null"] if missing else kind,
            "description": f"{meaning} [{unit(name)}]" if unit(name) else meaning,
        }
        field = named.get(name, {})
        for allowed in (f["enum"] for f in (field, *field.get("anyOf", ())) if "enum" in f):
            properties[name]["enum"] = allowed
    patterns = {"^accepted_[1-9][0-9]*$": properties.pop("accepted_j")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:bayes-sd:run-table:{__version__}",
        "title": f"Run table of bayes_sd {__version__}, a record a run",
        "type": "array",
        "items": {
            "type": "object",
            "properties": properties,
            "patternProperties": patterns,
            "required": list(properties),
            "additionalProperties": False,
        },
    }


def columns() -> str:
    """The columns of the run table as a table in Markdown."""
    rows = (f"| `{name}` | {unit(name)} | {text} |" for name, text in COLUMNS.items())
    return "\n".join(["| column | unit | meaning |", "|---|---|---|", *rows])


def _options(parameters: list[Any]) -> Iterator[str]:
    """Rows of a table: names, what is given, what it does."""
    for one in parameters:
        argument = one.param_type_name == "argument"
        names = ", ".join(f"`{name}`" for name in ([one.name] if argument else one.opts))
        form = "" if argument or one.is_flag else one.metavar or ""
        known = one.default not in (None, False, ()) and not callable(one.default)
        more = " Required." if one.required else f" Default: {one.default}." if known else ""
        yield f"| {names} | {form} | {one.help}{more} |"


def commands() -> str:
    """Every command and its options, in Markdown."""
    known = get_command(app).commands
    lines: list[str] = []
    for panel, verbs in PANELS.items():
        lines += [f"## {panel}", ""]
        for verb in verbs:
            name = verb.__name__.replace("_", "-")
            command = known[name]
            lines += [f"### bayes-sd {name}", "", command.help, ""]
            groups: dict[str, list[Any]] = {}
            for one in command.params:
                groups.setdefault(getattr(one, "rich_help_panel", None) or "", []).append(one)
            for title, parameters in groups.items():
                head = title or "Its own"
                lines += [f"| {head} | given | what |", "|---|---|---|", *_options(parameters), ""]
    return "\n".join(lines)


def copy_notebooks(folder: Path) -> None:
    """The notebooks as they are, with links as from this folder; only what changed is written."""
    folder.mkdir(exist_ok=True)
    sources = {path.name: path for path in NOTEBOOKS.glob("*.ipynb")}
    for path in folder.glob("*.ipynb"):
        if path.name not in sources:
            path.unlink()
    for name, path in sources.items():
        text = path.read_text().replace("](../docs/", "](../")
        copy = folder / name
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)


def write_schema(folder: Path) -> None:
    """The schema as a file of the site."""
    (folder / "run_table.schema.json").write_text(json.dumps(schema(), indent=2) + "\n")
