"""The report page: seconds to write it, bytes, and milliseconds of an update of its explorer.

    uv run python benchmarks/page.py tests/data/fit.nc

An update is all that a moved slider does, medians of 25: the load moves a mark, k and acceptance
one server's curves, the prompt length both. ``--draws`` puts so many in the page, whatever its
size.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from bayes_sd.fit import Fit
from bayes_sd.report import explorer

MOVES = {
    "load": "{ x: 0.5 + i / 30 }",
    "k": "{ k: 1 + i % most }",
    "acceptance": "{ a: 0.3 + i / 60 }",
    "prompt": "{ p: 60 + i }",
}
TIMED = """async () => {
  const most = Number(document.getElementById("x-k").max), taken = [];
  for (let i = 0; i < 25; i++) {
    const begun = performance.now();
    explorer.change(MOVE);
    explorer.update();
    taken.push(performance.now() - begun);
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  }
  return taken.sort((a, b) => a - b)[12];
}"""

asked = argparse.ArgumentParser(description=__doc__)
asked.add_argument("fit", type=Path)
asked.add_argument("--draws", type=int)
asked.add_argument("--verifier", default=None, help="of the explorer; default: the page's own")
given = asked.parse_args()
if given.draws:
    explorer.FEWEST = explorer.MOST = explorer.MOST_MOE = given.draws
    explorer.BYTES = 10**9
fit = Fit.load(given.fit)
with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
    begun = time.perf_counter()
    path = fit.report(Path(folder) / "page.html")
    print(f"{time.perf_counter() - begun:.1f} s, {path.stat().st_size:,} bytes")
    flags = ["--headless", "--no-sandbox", "--disable-gpu"]
    browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(path.as_uri())
    if given.verifier:
        tab.evaluate("v => explorer.change({ v })", given.verifier)
        tab.wait_for_timeout(500)
    draws = tab.evaluate("JSON.parse(document.getElementById('x-data').textContent).draws")
    each = {name: tab.evaluate(TIMED.replace("MOVE", move)) for name, move in MOVES.items()}
    told = ", ".join(f"{name} {ms:.0f} ms" for name, ms in each.items())
    print(f"{draws} draws x 100 loads, {tab.evaluate('explorer.state.v')}: {told}")
