"""What the site takes from the code when it is built: commands, columns, notebooks."""

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from bayes_sd import __version__
from bayes_sd.cli.app import PANELS, app
from bayes_sd.runs.config import Configuration
from bayes_sd.runs.rows import Workload
from bayes_sd.runs.schema import COLUMNS, DTYPES

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
REPLIES = tomllib.loads(Path(__file__).with_name("replies.toml").read_text(encoding="utf-8"))
EXAMPLE = "ask --verifier Qwen3-8B --machine H100 -k 3 --concurrency 8 --json"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
JSON_TYPES = {"str": "string", "int64": "integer", "bool": "boolean", "float64": "number"}
# By the end of a column's name, the first that fits; what fits none is a count, a share or a text.
UNITS = {
    "log_var_n_eff": "requests",
    "log_mean": "log s",
    "log_var": "",
    "gb_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "kv_bytes": "bytes",
    "per_million_tokens": "",
    "ms_per_minute": "ms/minute",
    "minutes": "minutes",
    "_ms": "ms",
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


def described(column: str, meaning: str) -> str:
    """What a column means, and its unit."""
    return f"{meaning} [{unit(column)}]" if unit(column) else meaning


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
            "description": described(name, meaning),
        }
        field = named.get(name, {})
        for allowed in (f["enum"] for f in (field, *field.get("anyOf", ())) if "enum" in f):
            properties[name]["enum"] = allowed
    patterns = {"^accepted_[1-9][0-9]*$": properties.pop("accepted_j")}
    return {
        "$schema": DRAFT,
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


def reply_schema(verb: str) -> dict[str, Any]:
    """JSON schema of what a command prints with ``--json``."""
    return {
        "$schema": DRAFT,
        "$id": f"urn:bayes-sd:reply:{verb}:{__version__}",
        "title": f"Reply of bayes-sd {verb} --json, version {__version__}",
        **_reply(verb),
    }


def _reply(verb: str) -> dict[str, Any]:
    own = REPLIES[verb]
    each = [_object(f"{REPLIES[other]['reply']} picture", other) for other in own.get("or", ())]
    reply = _object(own["reply"], verb)
    return {"anyOf": [reply, *each]} if each else reply


def _object(names: str, verb: str) -> dict[str, Any]:
    """Schema of an object with these names, in the reply of a command."""
    fields = [*REPLIES[verb].get("fields", {}).items(), *REPLIES["fields"].items()]
    while "@" in names:  # groups within groups
        names = re.sub("@([a-z]+)", lambda found: REPLIES["groups"][found[1]], names)
    properties = {}
    for name in names.replace("?", "").split():
        kind, meaning = next(told for known, told in fields if re.fullmatch(known, name))
        listed = (REPLIES["groups"] | REPLIES[verb]).get(name, "")
        properties[name] = _kind(kind, listed, verb) | {"description": described(name, meaning)}
    required = [name for name in names.split() if not name.endswith("?")]
    closed = {"required": required, "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed}


def _kind(kind: str, names: str, verb: str) -> dict[str, Any]:
    """Schema of a kind of field; `names` are those of its own fields, if it has any."""
    outer, _, inner = kind.partition(" of ")
    match name := outer.removesuffix("?"):
        case "reply":
            return _reply(inner)
        case "table":
            made = {"type": "array", "items": _object(names, verb)}
        case "object" if inner:
            made = {"type": "object", "additionalProperties": _kind(inner, "", verb)}
        case "object":
            made = _object(names, verb)
        case "array":
            made = {"type": "array", "items": _kind(inner, "", verb)}
        case "probability":
            made = {"type": "number", "minimum": 0, "maximum": 1}
        case _ if "|" in name:
            made = {"type": "string", "enum": name.split("|")}
        case _:
            made = {"type": name}
    return made | {"type": [made["type"], "null"]} if outer.endswith("?") else made


def example() -> str:
    """A reply as it is printed, in lines."""
    reply = json.loads(CliRunner().invoke(app, EXAMPLE.split()).stdout)
    return f"    $ bayes-sd {EXAMPLE}\n" + textwrap.indent(json.dumps(reply, indent=2), "    ")


def replies() -> str:
    """What every command prints with ``--json``, in Markdown."""
    lines = [example(), ""]
    for name, command in get_command(app).commands.items():
        made, others = reply_schema(name), REPLIES[name].get("or", [])
        lines += [f"## {name}", "", command.help, ""]
        lines += [f"The reply of {', '.join(others)} and `picture`, or:", ""] * bool(others)
        lines += ["| field | type | unit | meaning |", "|---|---|---|---|"]
        lines += [*_rows(made["anyOf"][0] if others else made), ""]
        lines += [f'Schema: <a href="{name}.schema.json">{name}.schema.json</a>', ""]
    return "\n".join(lines)


def _rows(schema: dict[str, Any], within: str = "") -> Iterator[str]:
    """Rows of a table: every field of an object, and the fields of those below it."""
    for name, one in schema["properties"].items():
        types = [one["type"]] if isinstance(one["type"], str) else one["type"]
        kind = ", ".join(one.get("enum", [" or ".join(types)])) + ", 0 to 1" * ("maximum" in one)
        kind += f" of {one['items']['type']}s" if "items" in one else ""
        kind += "" if name in schema["required"] else "; not always"
        meaning = one["description"].removesuffix(f" [{unit(name)}]")
        yield f"| `{within}{name}` | {kind} | {unit(name)} | {meaning} |"
        if "properties" in (below := one.get("items", one)):
            yield from _rows(below, f"{within}{name}{'[]' * ('items' in one)}.")


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


def write_schemas(folder: Path) -> None:
    """The schemas as files of the site."""
    made = {"run_table": schema()} | {
        verb: reply_schema(verb) for verb in get_command(app).commands
    }
    for name, one in made.items():
        (folder / f"{name}.schema.json").write_text(json.dumps(one, indent=2) + "\n")
