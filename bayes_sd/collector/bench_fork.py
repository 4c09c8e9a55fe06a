"""Keep ``vllm bench serve`` imported between runs; run by the Python of vLLM's environment.

Importing the load generator takes seconds on a small machine, during which it competes with the
server for nothing. This imports it once; each line of JSON on stdin, ``{"argv": [...], "log":
PATH}``, is one run in a forked child, and its exit status goes to stdout as one line. The load
generator is vLLM's own, its command line unchanged.
"""

import importlib
import json
import os
import sys
import traceback

# This file's folder must not hide installed modules from vLLM.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p) != HERE]

NEEDED = ("vllm.entrypoints.cli.main", "vllm.benchmarks.serve", "transformers.models.auto")


def one_run(argv: list, log: str) -> None:
    """In the child: what ``vllm`` would have done with this command line."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 0
    try:
        from vllm.entrypoints.cli.main import main

        sys.argv = ["vllm", *argv]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Import, say so, then a child for each line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what imports print must not be taken for an answer
    sys.argv = ["vllm", "bench", "serve"]
    for name in NEEDED:
        importlib.import_module(name)
    answers.write("ready\n")
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            one_run(job["argv"], job["log"])
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
