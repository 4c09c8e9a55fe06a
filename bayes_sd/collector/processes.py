"""Processes that end with the collector, and the search for those that did not."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bayes_sd.collector.files import write_text

TOKEN = "BAYES_SD_COLLECT"
GUARD = Path(__file__).with_name("guard.py")
_PROC = Path("/proc")


@dataclass
class Guarded:
    """A running command, the guard above it and the record of both."""

    guard: subprocess.Popen[str]
    lifeline: int
    record: Path
    token: str

    @property
    def code(self) -> int | None:
        """Exit status of the command, None while it runs."""
        return self.guard.poll()

    def stop(self, grace_s: float) -> None:
        """End the command and all it started; returns when it is gone."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
        try:
            self.guard.wait(grace_s + 10)
        except subprocess.TimeoutExpired:
            self.guard.kill()
            self.guard.wait()
        for pipe in (self.guard.stdin, self.guard.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        end_orphan(self.record)


def start(
    command: Sequence[str],
    records: Path,
    *,
    log: IO[str],
    env: Mapping[str, str],
    grace_s: float,
    piped: bool = False,
) -> Guarded:
    """Start a command under a guard, in a session of its own.

    Parameters
    ----------
    command : sequence of str
    records : Path
        Folder for the record by which a later collector finds the process.
    log : file
        Where the output goes (only errors if `piped`).
    env : mapping
        Added to this process's environment.
    grace_s : float
        Seconds from SIGTERM to SIGKILL.
    piped : bool
        Talk to it through ``guard.stdin`` and ``guard.stdout``.
    """
    token = uuid.uuid4().hex
    # vLLM renames its processes, which overwrites the environment the token is looked for in.
    marked = {**os.environ, **env, TOKEN: token, "SPT_NOENV": "1"}
    reading, writing = os.pipe()
    try:
        guard = subprocess.Popen(
            [sys.executable, "-S", "-E", str(GUARD), str(reading), str(grace_s), *command],
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else log,
            stderr=log,
            env=marked,
            pass_fds=(reading,),
            start_new_session=True,
            text=True,
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    session = _stat(guard.pid)
    record = records / f"{guard.pid}.process"
    about = {"pid": guard.pid, "started": session[1] if session else None, "token": token}
    write_text(record, json.dumps(about))
    return Guarded(guard, writing, record, token)


def end_orphans(records: Path) -> int:
    """End what an earlier collector left running; returns how many processes that were."""
    return sum(end_orphan(record) for record in sorted(records.glob("*.process")))


def end_orphan(record: Path) -> int:
    """End all processes of one record and remove it; returns their number."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        about = json.loads(record.read_text(encoding="utf-8"))
        ended = 0
        for number in (signal.SIGTERM, signal.SIGKILL):
            found = list(_members(about["pid"], about["started"], about["token"]))
            ended = max(ended, len(found))
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            end = time.monotonic() + 10
            while found and time.monotonic() < end:
                time.sleep(0.05)
                found = list(_members(about["pid"], about["started"], about["token"]))
        record.unlink(missing_ok=True)
        return ended
    record.unlink(missing_ok=True)
    return 0


def _stat(pid: int) -> tuple[int, int] | None:
    """Session and start time (clock ticks since boot) of a live process; Linux only."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] == "Z" else (int(fields[3]), int(fields[19]))


def _members(session: int, started: int | None, token: str) -> Iterator[int]:
    """Processes of a session; only those with the token once its leader is gone.

    A pid is used again after a while, so the leader has to have the recorded start time.
    """
    leader = _stat(session)
    ours = leader is not None and leader[1] == started
    for entry in _PROC.glob("[0-9]*"):
        pid = int(entry.name)
        if pid == os.getpid():
            continue
        about = _stat(pid)
        if about is None:
            continue
        if about[0] == session and ours:
            yield pid
        else:
            with contextlib.suppress(OSError):
                if f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes():
                    yield pid
