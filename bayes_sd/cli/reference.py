"""What the shipped reference says of models and machines that nobody measured."""

from typing import Annotated

import numpy as np

from bayes_sd.answers.compare import stretches
from bayes_sd.answers.servers import Server
from bayes_sd.cli import options as o
from bayes_sd.errors import InputError
from bayes_sd.fit import reference
from bayes_sd.runs.drafting import usual_rate
from bayes_sd.runs.load import Load
from bayes_sd.runs.sizes import WEIGHTLESS

IN_FLIGHT = "1,4,16,64"


def ask(
    verifier: Annotated[str, o.option("Name, config.json or params=8e9,...", "MODEL")],
    machine: Annotated[str, o.option("H100, or gb_per_s=1000,tflops=200.", "NAME")],
    gpus: Annotated[int, o.option("How many of it serve the model together.", "N")] = 1,
    drafter: Annotated[str, o.option("eagle3, mtp, ngram, or a model.", "MODEL")] = "eagle3",
    acceptance: Annotated[o.Text, o.option("Per token, as 0.7 or 0.8,0.6,0.5.", "A")] = None,
    concurrency: Annotated[o.Text, o.load_option(f"Default: {IN_FLIGHT}.", "LIST")] = None,
    rps: Annotated[o.Text, o.load_option("Requests/s, instead.", "LIST")] = None,
    prompt: Annotated[float, o.load_option("Prompt tokens of a request.", "N")] = 512.0,
    output: Annotated[float, o.load_option("Output tokens of a request.", "N")] = 256.0,
    k: Annotated[str, o.option("Draft tokens, compared with plain.", "LIST", "-k")] = "1,3,5",
) -> o.Reply:
    """Answer before measuring, from data sheets: is drafting worth it, and with how many tokens?"""
    where = o.machine_of(machine, gpus)
    size = o.size_of(verifier, "--verifier")
    small, assumed = o.drafter_of(drafter, "--drafter", verifier), ""
    accepted = o.amount(acceptance, "--acceptance")
    if accepted is None:
        accepted = usual_rate(drafter, 0.0 if drafter.lower() in WEIGHTLESS else small.params)
        assumed = " (usual of its kind; --acceptance says yours)"
    lengths = [x for x in o.draft_lengths(k) if x > 0]
    if not lengths:
        raise InputError("-k must name a draft length above 0 to compare with plain.")
    plain = Server(size, environment=where)
    drafting = [Server(size, small, n, accepted, where) for n in lengths]
    if None not in (concurrency, rps):
        raise InputError("Give one of <<concurrency>> and <<rps>>.")
    rates_rps = None if rps is None else o.numbers(rps, "--rps")
    asked = IN_FLIGHT if concurrency is None else concurrency
    in_flight = o.numbers(asked, "--concurrency") if rps is None else None
    load = Load(concurrency=in_flight, rps=rates_rps, prompt=prompt, output=output)
    known = reference(where.name)
    answer = known.compare(load, drafting, plain, extrapolate=True)
    least = answer.least_loss.values.ravel()
    short = {str(server): f"k = {server.k}" for server in drafting} | {str(plain): "plain"}
    chosen = [short.get(str(name), str(name)) for name in least]
    where_best = [*zip(load.cells[load.axis].values, chosen, strict=True)]
    verdict = f"Least expected loss of latency: {stretches(where_best, load.axis)}"
    bits = size.weight_bits or 16
    if bits < 16 and where.tflops_at(bits) == where.tflops_at(16):
        assumed += f", weights of {bits:.3g} bits computed in 16 on {where.name}"
    itself = f"{where.name} and " if known is not reference() else ""
    rates = ", ".join(f"{rate:g}" for rate in np.atleast_1d(accepted))
    told = (
        f"Assumed: acceptance {rates} a token{assumed}, {prompt:g} + {output:g} tokens, vLLM with "
        f"captured graphs. From public runs of {itself}other machines and the data sheet of "
        f"{where}; a handful of runs of your own make it sharp."
    )
    title = f"SD against plain {size.label} on {where}: faster, slower and both saturated sum to 1"
    reply = o.Reply.of(answer, title, verdict=verdict, assumed=told, least_loss=chosen)
    return o.Reply(reply.data, [*map(o.fill, (f"{verdict}.", told)), *reply.shown[1:]])
