"""Run a command and end it, children included, when whoever started this is gone.

Run as a script: ``python guard.py FD GRACE_S COMMAND...``. FD is the reading end of a pipe whose
other end only the collector holds, so it closes however the collector ends, ``kill -9`` included.
Then the command's process group gets SIGTERM, and SIGKILL after GRACE_S seconds. The exit status
is the command's. Standard library only, and nothing of bayes_sd: it has to start fast.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
CANNOT_START = 127


def _die_with_guard() -> None:
    # Linux only, and only a second line of defence: for the case that the guard itself is killed.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main() -> int:
    """Guard one command; returns its exit status."""
    lifeline, grace, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        # A group of its own, in the guard's session: both can be found by the guard's pid.
        child = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_guard)
    except OSError as error:
        print(f"cannot start {command[0]!r}: {error.strerror}", file=sys.stderr, flush=True)
        return CANNOT_START
    while child.poll() is None and not asked:
        if select.select([lifeline], [], [], 0.1)[0]:
            break
    if child.poll() is None:
        _signal(child.pid, signal.SIGTERM)
        end = time.monotonic() + grace
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    # What the command started and left behind.
    _signal(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    raise SystemExit(main())
