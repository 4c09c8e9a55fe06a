"""Files that are whole or not there, and the lock on a folder."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bayes_sd.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all."""
    # Not .json: a leftover must not be taken for a run.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed left in the folders of a collection.

    Only for who holds its lock: another collector's file may be about to be renamed.
    """
    for leftover in folder.glob("*/.*.[0-9]*.partial"):
        leftover.unlink(missing_ok=True)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a small mapping that people may want to read."""
    write_text(path, json.dumps(state, indent=1) + "\n")


def read_state(path: Path) -> dict[str, Any]:
    """Such a mapping, empty if it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{path}: is not a complete state file; remove it to go on") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one collector; the lock goes with the process, however it ends.

    Raises
    ------
    InputError
        If another collector holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another collect is running there; wait for it") from None
        yield
