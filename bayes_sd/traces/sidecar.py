"""Configuration of files kept beside them, in YAML or CSV."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bayes_sd.errors import InputError
from bayes_sd.traces.config import KNOWN, canonical


@dataclass(frozen=True)
class Sidecar:
    """Patterns and the configuration keys of the files they match."""

    entries: tuple[tuple[str, Mapping[str, Any]], ...]

    def of(self, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Entries whose pattern matches the file's name or path."""
        return ((pattern, keys) for pattern, keys in self.entries if _matches(pattern, file))


def _matches(pattern: str, file: Path) -> bool:
    path = file.as_posix()
    return fnmatch(file.name, pattern) or fnmatch(path, pattern) or fnmatch(path, f"*/{pattern}")


def read_sidecar(path: str | Path, files: Iterable[Path]) -> Sidecar:
    """Read and check a sidecar against the files it is meant for.

    Raises
    ------
    InputError
        If the sidecar cannot be read, has an unknown key, or an entry matches no file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such sidecar file; YAML or CSV is needed")
    entries = tuple(_csv(path) if path.suffix.lower() == ".csv" else _yaml(path))
    files = list(files)
    checked = []
    for pattern, keys in entries:
        for key in keys:
            if key not in KNOWN:
                raise InputError(f"{path}: unknown key {key!r}; known are {', '.join(KNOWN)}")
        if not any(_matches(pattern, file) for file in files):
            raise InputError(f"{path}: {pattern!r} matches none of the {len(files)} files")
        checked.append((pattern, canonical(keys)))
    return Sidecar(tuple(checked))


def _yaml(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path}: is not YAML ({line})") from None
    if not isinstance(data, dict) or not all(isinstance(keys, dict) for keys in data.values()):
        raise InputError(f"{path}: must map file names or patterns to configuration keys")
    for pattern, keys in data.items():
        yield str(pattern), {str(key): value for key, value in keys.items()}


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path}: is not a CSV table ({line})") from None
    if "file" not in table.columns:
        have = ", ".join(table.columns)
        raise InputError(f"{path}: a column 'file' is needed, but the columns are {have}")
    for row in table.to_dict("records"):
        yield str(row["file"]), {str(k): v for k, v in row.items() if k != "file"}
