"""The explorer in a real browser: it loads alone, computes what Python does, and can be used."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bayes_sd as bsd
from bayes_sd.answers.answer import quantile
from bayes_sd.answers.servers import name_of
from bayes_sd.fit import Fit

pytestmark = pytest.mark.browser
PLAIN, DRAFT = "moe-e8k2", "draft-3m @ 0.9"
ANSWER = "#x-answer"
QUESTIONS = 25
DATA = "JSON.parse(document.getElementById('x-data').textContent)"


def test_it_loads_without_an_error_or_a_request(opened: Callable[..., Any]) -> None:
    page = opened()
    page.tab.wait_for_timeout(300)
    assert page.complaints == [] and len(page.requests) == 1
    assert "is faster than plain with probability" in page.text(ANSWER)
    assert page.tab.locator("canvas").count() == 2


def check_numbers(
    page: Any, thin: Fit, asked: dict[str, Any], plain: bsd.Server, server: bsd.Server
) -> None:
    """What the page says of a question is what Python says of both servers."""
    load, metric = asked["x"], asked["m"]
    (said,) = page.tab.evaluate("([asked, load]) => explorer.answer(asked, [load])", [asked, load])
    name = "rps" if asked["axis"] == "rate_rps" else asked["axis"]
    wanted = bsd.Load(**{name: load}, prompt=asked["p"], output=asked["g"])
    answer = thin.latency(wanted, [plain, server], metric=metric, extrapolate=True)
    other, own = (answer.draws["mean_s"].isel(server=i) for i in (0, 1))
    for which, draws in (("plain", other), ("sd", own)):
        values = quantile(draws, [0.05, 0.5, 0.95]).values
        heard = [np.inf if v is None else float(v) for v in said[which]]
        np.testing.assert_allclose(heard, values, rtol=1e-6, err_msg=f"{asked}")
    assert said["faster"] == pytest.approx(float((own < other).mean()), abs=1e-9)
    if metric == "e2e":
        table = thin.compare(wanted, server, plain, extrapolate=True).table.iloc[0]
        heard = [float(v) for v in said["speedup"]]
        own_table = table[["speedup_p05", "speedup_p50", "speedup_p95"]].to_numpy(float)
        np.testing.assert_allclose(heard, own_table, rtol=1e-6, err_msg=f"{asked}")


def test_numbers_stay_those_of_python_when_asked_again(
    opened: Callable[..., Any], fit: Fit
) -> None:
    page = opened()
    asked, again = page.tab.evaluate("[explorer.state, { ...explorer.state, k: 1 }]")
    thin, drafter = fit.thin(page.tab.evaluate(DATA)["draws"]), asked["d"].partition(" @ ")[0]
    loads = "Array.from({ length: 100 }, (_, i) => 0.05 * (i + 1))"  # so many are kept
    for state in (asked, again, asked):
        page.tab.evaluate(f"(state) => {{ explorer.answer(state, {loads}); }}", state)
    said = page.tab.evaluate(f"(state) => explorer.answer(state, {loads})[49]", again)
    load = bsd.Load(rps=2.5, prompt=asked["p"], output=asked["g"])
    server = bsd.Server(asked["v"], drafter, 1, 0.9)
    row = thin.compare(load, server, bsd.Server(asked["v"]), extrapolate=True).table.iloc[0]
    assert said["faster"] == pytest.approx(row["prob_faster"], abs=1e-9)
    assert said["speedup"][1] == pytest.approx(row["speedup_p50"], rel=1e-6)
    assert said["speedup"][0] == pytest.approx(row["speedup_p05"], rel=1e-6)


SIZED = bsd.Server(bsd.Size(1e8), bsd.Size(5e6), 3, 0.7)


@pytest.mark.parametrize(
    "server",
    [
        SIZED,
        bsd.Server("Qwen3-8B", "eagle3", 3, 0.7),
        bsd.Server("dense-60m", bsd.Size(5e6), 2, 0.7),
        bsd.Server("dense-60m", "draft-3m", 2, (0.8, 0.6)),
        bsd.Server("dense-60m", "draft-3m", 2, 0.6),
        bsd.Server("dense-60m", "draft-12m", 9),
        replace(SIZED, environment=bsd.Machine("H100")),
    ],
    ids=str,
)
def test_it_begins_with_the_server_that_was_asked_about(
    opened: Callable[..., Any], with_sheet: Fit, tmp_path: Path, server: bsd.Server
) -> None:
    plain = replace(server, drafter=None, k=0, acceptance=None)
    load = bsd.Load(rps=[0.01, 0.02, 0.03], prompt=128, output=64)
    how: dict[str, Any] = {"load": load, "extrapolate": True}
    path = with_sheet.report(tmp_path / "p.html", servers=server, baseline=plain, **how)
    page = opened(path=path)
    assert page.complaints == [] and f"k = {server.k} is faster than plain" in page.text(ANSWER)
    assert page.text(".over") == f"Is speculative decoding worth it for {name_of(server.verifier)}?"
    assert "measured" in page.text(ANSWER)  # it says that this very server was not
    thin = with_sheet.thin(page.tab.evaluate(DATA)["draws"])
    check_numbers(page, thin, page.tab.evaluate("explorer.state"), plain, server)


def test_it_begins_with_the_server_asked_about_where_few_fit(
    opened: Callable[..., Any], fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayes_sd.report.explorer.BYTES", 200_000)
    here = fit.environments[0]
    for verifier, drafter, acceptance in (
        ("dense-25m", "draft-3m", 0.7),
        ("dense-200m", "draft-3m", 0.8),
    ):
        plain = bsd.Server(verifier, environment=here)
        server = replace(plain, drafter=drafter, k=1, acceptance=acceptance)
        load = bsd.Load(rps=[0.1, 0.2], prompt=128, output=64)
        path = fit.report(tmp_path / "p.html", load=load, servers=server, baseline=plain)
        page = opened(path=path)
        name = f"{drafter} @ {acceptance}"
        assert page.complaints == [] and f"{name}, k = 1 is faster" in page.text(ANSWER)
        assert "left out for size" in page.text("#explore")


def test_it_says_what_it_leaves_out(opened: Callable[..., Any], fit: Fit, tmp_path: Path) -> None:
    edge, load = bsd.structures.Edge(round_trip_s=0.03), bsd.Load(rps=[1, 2], prompt=128, output=64)
    how: dict[str, Any] = {"load": load, "baseline": bsd.Server("dense-60m"), "extrapolate": True}
    server = bsd.Server("dense-60m", "draft-12m", 20, structure=edge)
    page = opened(path=fit.report(tmp_path / "p.html", servers=server, **how))
    assert page.complaints == [] and page.tab.evaluate("explorer.state.k") == 16
    said = page.text("#explore")
    assert "structure assumed above is left out here. It goes to 16 draft tokens at most." in said


def random_load(rng: np.random.Generator) -> dict[str, Any]:
    axis = str(rng.choice(["rate_rps", "concurrency"]))
    prompt, output = (float(round(np.exp(rng.uniform(1.5, 7)))) for _ in range(2))
    load = float(rng.uniform(1, 40) if axis == "concurrency" else np.exp(rng.uniform(-4, 2.5)))
    metric = str(rng.choice(["e2e", "ttft", "tpot"]))
    return {"axis": axis, "p": prompt, "g": output, "x": load, "m": metric}


def test_numbers_are_those_of_python(opened: Callable[..., Any], fit: Fit) -> None:
    page, rng = opened(), np.random.default_rng(19)
    data = page.tab.evaluate(DATA)
    thin = fit.thin(data["draws"])
    assert thin.draws == data["draws"]
    for _ in range(QUESTIONS):
        system = data["systems"][rng.integers(len(data["systems"]))]
        pair = system["pairs"][rng.integers(len(system["pairs"]))]
        k = int(rng.choice([int(k) for k in pair["servers"]]))
        given = round(float(rng.uniform(0.05, 0.98)), 6) if rng.random() < 0.4 else None
        drafter, _, imposed = pair["name"].partition(" @ ")
        acceptance = given if given is not None else float(imposed) if imposed else None
        asked = {"v": system["name"], "d": pair["name"], "k": k, "a": given, "w": ""}
        plain = bsd.Server(system["name"])
        server = bsd.Server(system["name"], drafter, k, acceptance)
        check_numbers(page, thin, asked | random_load(rng), plain, server)


def test_numbers_of_what_nobody_measured_are_those_of_python(
    opened: Callable[..., Any], with_sheet: Fit, sheet_page: Path
) -> None:
    page, rng = opened(path=sheet_page), np.random.default_rng(23)
    data = page.tab.evaluate(DATA)
    thin, new = with_sheet.thin(data["draws"]), data["new"]
    for _ in range(QUESTIONS):
        system = data["systems"][rng.integers(len(data["systems"]))]
        model = new["models"][rng.integers(len(new["models"]))]
        pairs = (model if (known := rng.random() < 0.7) else system)["pairs"]
        pair, k = pairs[rng.integers(len(pairs))], int(rng.integers(1, data["k_most"] + 1))
        name = model["name"] if known else system["name"]
        given = round(float(rng.uniform(0.05, 0.98)), 6) if known or rng.random() < 0.4 else None
        drafter, _, imposed = pair["name"].partition(" @ ")
        acceptance = given if given is not None else float(imposed) if imposed else None
        sheet, gpus = new["machines"][rng.integers(len(new["machines"]))]["name"], 64
        where: Any = None if known and rng.random() < 0.3 else bsd.Machine(sheet, gpus)
        asked = {"v": name, "d": pair["name"], "k": k, "a": given, "n": gpus}
        asked["w"] = "@0" if where is None else sheet
        plain = bsd.Server(name, environment=where)
        server = bsd.Server(name, drafter, k, acceptance, where)
        check_numbers(page, thin, asked | random_load(rng), plain, server)


def test_a_slider_moves_the_curves(opened: Callable[..., Any]) -> None:
    page = opened()
    page.tab.locator("#explorer details summary").click()
    pixels = "() => document.querySelector('#c-latency canvas').toDataURL()"
    before = (page.text(ANSWER), page.text("#x-table"), page.tab.evaluate(pixels))
    page.tab.locator("#r-k").focus()
    page.tab.keyboard.press("ArrowRight")  # as a reader without a mouse
    page.tab.wait_for_timeout(200)
    after = (page.text(ANSWER), page.text("#x-table"), page.tab.evaluate(pixels))
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert page.tab.input_value("#x-k") == "4" and "k = 4 was not measured" in after[0]
    assert page.text("#x-key") == f"{DRAFT}, k = 4"


def test_every_control_changes_what_is_asked(opened: Callable[..., Any]) -> None:
    page = opened()
    page.tab.locator("#x-a").fill("0.25")
    page.tab.locator("#x-p").fill("500")
    page.tab.locator("#x-g").fill("33")
    page.tab.locator("#x-load").fill("1.5")
    page.tab.locator("#x-metric").select_option("ttft")
    state = page.tab.evaluate("explorer.state")
    assert [state[name] for name in "apgxm"] == [0.25, 500, 33, 1.5, "ttft"]
    assert not page.tab.is_checked("#x-measured")
    page.tab.locator("#x-measured").check()
    page.tab.locator("#x-axis").select_option("concurrency")
    page.tab.locator("#x-system").select_option("dense-60m")
    state = page.tab.evaluate("explorer.state")
    assert (state["a"], state["axis"], state["v"]) == (None, "concurrency", "dense-60m")
    page.tab.wait_for_timeout(200)
    assert "requests in flight" in page.text(ANSWER) and page.complaints == []


def test_a_model_and_a_machine_nobody_measured_can_be_asked_about(
    opened: Callable[..., Any], sheet_page: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(path=sheet_page)
    measured = page.text(ANSWER)
    assert not page.tab.locator("#x-n").is_visible()
    page.tab.locator("#x-where").select_option("H100")
    page.tab.wait_for_timeout(200)
    assert "Data sheet, not measured: nobody measured H100" in page.text(ANSWER)
    page.tab.locator("#x-system").select_option("Qwen3-235B-A22B")
    page.tab.wait_for_timeout(200)
    assert page.text(ANSWER) == "469 GB of weights do not fit into the 80 GB of H100."
    page.tab.locator("#x-n").fill("8")
    page.tab.wait_for_timeout(200)
    said, address = page.text(ANSWER), page.tab.evaluate("location.hash")
    assert "nobody measured 8x H100" in said and "eagle3, k = 3 is faster than plain" in said
    assert "234 billion total parameters" in said and page.tab.is_disabled("#x-measured")
    assert Axe().run(page.tab).response["violations"] == []
    assert opened(address, sheet_page).text(ANSWER) == said
    page.tab.locator("#x-pair").select_option("ngram")
    page.tab.wait_for_timeout(200)
    assert "the acceptance is what is usual of such a drafter" in page.text(ANSWER)
    page.tab.locator("#x-pair").select_option("eagle3")
    page.tab.locator("#x-where").select_option("@0")
    page.tab.wait_for_timeout(200)
    assert "Extrapolated, not measured: nobody measured Qwen3-235B" in page.text(ANSWER)
    load = page.tab.evaluate("explorer.state.x")  # that of before would be past its capacity
    assert load < 0.5 and f"At {load:g} requests/s eagle3, k = 3 is faster" in page.text(ANSWER)
    page.tab.locator("#x-system").select_option(PLAIN)
    page.tab.locator("#x-pair").select_option(DRAFT)
    page.tab.locator("#x-load").fill(measured.split()[1])
    page.tab.wait_for_timeout(200)
    assert page.text(ANSWER) == measured and page.complaints == []


def test_a_field_without_a_number_asks_nothing(opened: Callable[..., Any]) -> None:
    page = opened()
    before = page.tab.evaluate("explorer.state")
    for field in ("#x-p", "#x-load", "#x-k"):
        page.tab.locator(field).fill("")
    page.tab.locator("#x-load").press("Tab")
    assert page.tab.evaluate("explorer.state") == before and page.complaints == []


def test_the_address_restores_the_state(opened: Callable[..., Any]) -> None:
    page = opened()
    page.tab.locator("#x-system").select_option("dense-115m")
    page.tab.locator("#x-load").fill("2.25")
    page.tab.locator("#x-a").fill("0.6")
    page.tab.wait_for_timeout(200)
    address = page.tab.evaluate("location.hash")
    again = opened(address)
    assert again.tab.evaluate("explorer.state") == page.tab.evaluate("explorer.state")
    assert again.text(ANSWER) == page.text(ANSWER)


def test_a_load_is_said_as_python_says_it(opened: Callable[..., Any]) -> None:
    page = opened("#axis=concurrency&x=1&v=dense-60m")
    assert page.text(ANSWER).startswith("At 1 request in flight ")
    page = opened("#axis=rate_rps&x=0&v=dense-60m")
    assert page.text(ANSWER).startswith("At 0 requests/s ") and "NaN" not in page.text(ANSWER)
    page = opened("#axis=rate_rps&x=900&v=dense-60m")
    assert re.match(r"At 900 requests/s both are saturated\.( Beyond.*)?$", page.text(ANSWER))
    assert page.complaints == []


@pytest.mark.parametrize(
    "address",
    [
        "#v=nobody&d=<b>&k=99&a=2&x=-1&p=0&g=x&axis=up&m=all",
        "#k=&x=&p=",
        "#=&=",
        "#%E0%A4=1",
        "#latency",
    ],
)
def test_an_address_that_says_nothing_usable(opened: Callable[..., Any], address: str) -> None:
    page = opened(address)
    assert page.complaints == [] and "plain" in page.text(ANSWER)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_violation(opened: Callable[..., Any], scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(color_scheme=scheme, viewport={"width": width, "height": 844})
    page.tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = Axe().run(page.tab).response["violations"]
    told = [(v["id"], [n["html"][:100] for n in v["nodes"][:3]]) for v in found]
    assert told == []
    assert page.tab.evaluate("document.documentElement.scrollWidth") == width


def test_without_scripts_it_says_what_it_cannot_show(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert "Without scripts this part is not shown" in page.text("#explore")
    assert not page.tab.locator("#explorer").is_visible()
    assert page.tab.locator("figure svg").count() >= 5 and "Yes" in page.text("h1")


def test_hostile_names_run_nothing(
    opened: Callable[..., Any], fit: Fit, renamed: Any, tmp_path: Path
) -> None:
    bad = "</script><img src=x onerror=alert(1)>\"'\u202e\x1b[31m" + "long" * 300
    path = renamed(fit, PLAIN, bad).report(tmp_path / "page.html")
    page = opened(path=path, viewport={"width": 390, "height": 844})
    page.tab.wait_for_timeout(300)
    assert page.complaints == [] and len(page.requests) == 1
    assert page.tab.locator("img").count() == 0
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 390


def test_it_prints_on_a_few_sheets(opened: Callable[..., Any]) -> None:
    page = opened(color_scheme="dark")
    sheets = page.tab.pdf(format="A4").count(b"/Type /Page\n")
    assert 3 <= sheets <= 12
    page.tab.emulate_media(media="print")
    color = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert color == "rgb(255, 255, 255)"
