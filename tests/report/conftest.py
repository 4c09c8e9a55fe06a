"""Pages of the small fit, of fits made from it, and a browser to open them in."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sd.fit import Fit

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def page(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fit of six verifiers says of its best measured one."""
    return fit.report(tmp_path_factory.mktemp("report") / "page.html")


def _mapped(fit: Fit, change: Callable[[str, xr.Dataset], xr.Dataset]) -> Fit:
    groups = {name: node.to_dataset() for name, node in fit.tree.children.items()}
    tree = xr.DataTree.from_dict({name: change(name, data) for name, data in groups.items()})
    tree.attrs = dict(fit.tree.attrs)
    return Fit(tree)


@pytest.fixture(scope="session")
def renamed() -> Callable[[Fit, str, str], Fit]:
    """A fit with a name in place of another, wherever that stands."""

    def text(values: Any, old: str, new: str) -> Any:
        return np.array([str(v).replace(old, new) for v in values.ravel()], object)

    def changed(fit: Fit, old: str, new: str) -> Fit:
        def change(_: str, data: xr.Dataset) -> xr.Dataset:
            own = [n for n, v in data.variables.items() if v.dtype.kind in "UO"]
            return data.assign({n: (data[n].dims, text(data[n].values, old, new)) for n in own})

        made = _mapped(fit, change)
        quoted = json.dumps(new)[1:-1]
        made.tree.attrs["provenance"] = fit.tree.attrs["provenance"].replace(old, quoted)
        return made

    return changed


@pytest.fixture(scope="session")
def only() -> Callable[[Fit, Callable[[Any], Any]], Fit]:
    """A fit of only those servers, and their runs, for which a function of the table holds."""

    def kept(fit: Fit, holds: Callable[[Any], Any]) -> Fit:
        table = fit.servers[holds(fit.servers)]
        drafters = sorted({*table["drafter"]} - {"none"})
        keep = {"server": table["server"], "verifier": table["verifier"].unique()}

        def change(name: str, data: xr.Dataset) -> xr.Dataset:
            if name == "runs":
                return data.isel(run=np.isin(data["server"].values.astype(str), keep["server"]))
            if name == "acceptance":
                here = np.isin(data["verifier"].values.astype(str), keep["verifier"])
                return data.isel(pair=here & np.isin(data["drafter"].values.astype(str), drafters))
            here = {dim: [*values] for dim, values in keep.items() if dim in data.dims}
            if "drafter" in data.dims:
                here["drafter"] = drafters
            return data.sel(here)

        return _mapped(fit, change)

    return kept


@pytest.fixture(scope="session")
def with_sheet(fit: Fit) -> Fit:
    """The small fit as if it had run on a machine with a data sheet."""
    sheet = {"gb_per_s": 230.0, "tflops": 24.0, "dies": 1.0, "captured_tokens": 512.0}

    def change(name: str, data: xr.Dataset) -> xr.Dataset:
        if name not in ("servers", "runs"):
            return data
        dim = next(iter(data.dims))
        return data.assign({n: (dim, np.full(data.sizes[dim], x)) for n, x in sheet.items()})

    return _mapped(fit, change)


@pytest.fixture(scope="session")
def sheet_page(with_sheet: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that fit."""
    return with_sheet.report(tmp_path_factory.mktemp("sheet") / "page.html")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


class Opened:
    """A page in the browser, and what it complained about and asked for."""

    def __init__(self, browser: Any, path: Path, address: str = "", **how: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | how)
        self.tab = self.context.new_page()
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.tab.on("console", lambda said: self.complaints.append(said.text))
        self.tab.on("request", lambda request: self.requests.append(request.url[:200]))
        self.tab.goto(f"{path.as_uri()}{address}")

    def text(self, name: str) -> str:
        return self.tab.locator(name).inner_text()


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Callable[..., Opened]]:
    """Opens a page, that of the small fit if none is named."""
    pages: list[Opened] = []

    def opens(address: str = "", path: Path = page, **how: Any) -> Opened:
        pages.append(Opened(browser, path, address, **how))
        return pages[-1]

    yield opens
    for each in pages:
        each.context.close()
