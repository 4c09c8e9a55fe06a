"""Start a server, wait until it is healthy and the right one, and end it."""

import contextlib
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bayes_sd.collector import processes
from bayes_sd.collector.ask import get, get_json
from bayes_sd.collector.plan import ConfigurationPlan, ServerPlan

# The largest batch of the "never draft" schedule; vLLM cuts it to what the server allows.
K0_BATCH = 1024


class Failure(Exception):
    """Something that is recorded, and the rest goes on; the message says what."""


class ServerDied(Failure):
    """The server is gone, so no further run makes sense before it is started again."""


@dataclass(frozen=True)
class Server:
    """A healthy server; `process` is None if somebody else started it."""

    base_url: str
    served_name: str
    startup_s: float | None
    version: str | None
    arguments: tuple[str, ...]
    process: processes.Guarded | None = None

    @property
    def alive(self) -> bool:
        """Whether it still runs, or at least answers."""
        if self.process is not None and self.process.code is not None:
            return False
        with contextlib.suppress(OSError):
            get(f"{self.base_url}/health")
            return True
        return False


def speculative_config(c: ConfigurationPlan) -> dict[str, Any] | None:
    """What goes into ``--speculative-config``; None for a plain server."""
    if c.arm == "plain":
        return None
    config: dict[str, Any] = {"num_speculative_tokens": c.draft_tokens}
    if c.drafter_model:
        config |= {"method": "draft_model", "model": c.drafter_model}
    if c.arm == "sd_k0":
        config["num_speculative_tokens_per_batch_size"] = [[1, K0_BATCH, 0]]
    if c.synthetic_acceptance and c.acceptance is not None:
        # vLLM wants the probability of reaching each position, not the conditional one.
        config |= {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": [
                round(c.acceptance**j, 6) for j in range(1, c.draft_tokens + 1)
            ],
        }
    return config | c.speculative


def command_of(plan: ServerPlan, c: ConfigurationPlan, port: int) -> list[str]:
    """The whole command line of a server."""
    options = [c.model, "--host", plan.host, "--port", str(port)]
    options += ["--served-model-name", served_name(c), *plan.args, *c.args]
    speculative = speculative_config(c)
    if speculative is not None:
        options += ["--speculative-config", json.dumps(speculative)]
    return [*plan.command, *(map(shlex.quote, options) if plan.quote else options)]


def served_name(c: ConfigurationPlan) -> str:
    """The model name a server answers with: its own, so that no other is taken for it."""
    return c.served_name or c.name


@contextlib.contextmanager
def serving(
    plan: ServerPlan, c: ConfigurationPlan, records: Path, log: Path, base_url: str | None = None
) -> Iterator[Server]:
    """A healthy server for a configuration, ended on leaving.

    Parameters
    ----------
    plan : ServerPlan
    c : ConfigurationPlan
    records : Path
        Folder for what a later collector needs to find an orphan.
    log : Path
        File the server's output is added to.
    base_url : str, optional
        Use the server that runs there instead of starting one.

    Raises
    ------
    Failure
        If the port is taken, the server dies, never becomes healthy or is another one.
    """
    if base_url is not None:
        url = base_url.rstrip("/")
        _wait(url, 10.0, None, log)
        _check_name(url, c)
        yield Server(url, served_name(c), None, _version(url), ())
        return
    port = plan.port or _free_port(plan.host)
    url = (plan.base_url or f"http://{_reach(plan.host)}:{port}").rstrip("/")
    _check_free(url)
    command = command_of(plan, c, port)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        process = processes.start(
            command, records, log=out, env={**plan.env, **c.env}, grace_s=plan.stop_timeout_s
        )
    try:
        _wait(url, plan.startup_timeout_s, process, log)
        startup_s = time.monotonic() - began
        _check_name(url, c)
        yield Server(
            url,
            served_name(c),
            startup_s,
            _version(url),
            tuple(command[len(plan.command) :]),
            process,
        )
    finally:
        if plan.stop_command:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    plan.stop_command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=plan.stop_timeout_s,
                    check=False,
                )
        process.stop(plan.stop_timeout_s)


def _free_port(host: str) -> int:
    with socket.socket() as s:
        s.bind((host if host not in ("0.0.0.0", "::") else "127.0.0.1", 0))
        return int(s.getsockname()[1])


def _reach(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def _check_free(url: str) -> None:
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return
    raise Failure(
        f"port {address[1]} of {address[0]} is in use{_who(url)}; end that or set server.port"
    )


def _who(url: str) -> str:
    with contextlib.suppress(OSError):
        return f" by a server of {_names(url)[0]!r}"
    return ""


def _wait(url: str, timeout_s: float, process: processes.Guarded | None, log: Path) -> None:
    end = time.monotonic() + timeout_s
    while True:
        if process is not None and process.code is not None:
            raise Failure(f"the server ended with status {process.code} at start: {last_line(log)}")
        with contextlib.suppress(OSError):
            get(f"{url}/health", timeout_s=5)
            return
        if time.monotonic() > end:
            raise Failure(f"the server did not become healthy within {timeout_s:g} s")
        time.sleep(0.25)


def _names(url: str) -> list[str]:
    models = get_json(f"{url}/v1/models")
    try:
        names = [str(model["id"]) for model in models["data"]]
    except (TypeError, KeyError):
        names = []
    if not names:
        raise OSError(f"{url}/v1/models names no model")
    return names


def _check_name(url: str, c: ConfigurationPlan) -> None:
    try:
        names = _names(url)
    except OSError as error:
        raise Failure(f"the server does not say which model it serves ({error})") from None
    if served_name(c) not in names:
        raise Failure(f"the server serves {', '.join(names)}, not {served_name(c)!r}")


def _version(url: str) -> str | None:
    with contextlib.suppress(OSError, TypeError, KeyError):
        return str(get_json(f"{url}/version")["version"])
    return None


def last_line(log: Path, most: int = 300) -> str:
    """The line of a log that says why: the last error, else the last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "no log"
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if "Error: " in line or "error: " in line]
    return (errors or said or ["it said nothing"])[-1][:most]
