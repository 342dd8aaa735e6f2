"""The page of the report in a real browser, Debian's chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest

from tune_stn.study.incumbent import best_so_far
from tune_stn.study.report import write_report
from tune_stn.study.results import load_results

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("undrawn")]

EVIL = '<img src=x onerror=alert(1)>&"'
WIDTHS = (1280, 390)
FIGURES = ["cost_total", "wall_time_s", "schedule-0", "schedule-1", "value-0", "value-1"]
# Every figure: its name, what it draws, and whether it lies within the page's width and is not hidden.
LOOK = """
return [...document.querySelectorAll("svg")].map((svg) => {
  const box = svg.getBoundingClientRect();
  const seen = svg.checkVisibility() && box.width > 200 && box.height > 60 && box.left >= 0 && box.right <= innerWidth;
  return [svg.id, seen, svg.querySelectorAll("path, circle").length, svg.textContent];
});
"""


class Browser:
    """A page at a width, and what went wrong on it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        command = self.driver.execute_cdp_cmd
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        command("Emulation.setDeviceMetricsOverride", metrics)
        command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        self.driver.get(page.as_uri())

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def point_at(self, figure: str) -> str:
        """Point at the middle of a figure; gives the text of the tooltip."""
        self.run(f"""
            const svg = document.getElementById("{figure}"), box = svg.getBoundingClientRect();
            const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height / 2];
            svg.dispatchEvent(new PointerEvent("pointermove", {{ clientX, clientY }}));
        """)
        return str(self.run('const tip = document.getElementById("tip"); return tip.hidden ? "" : tip.innerText;'))

    def trouble(self) -> list[Any]:
        wide = self.run("return document.documentElement.scrollWidth - innerWidth")
        return [*self.driver.get_log("browser"), *(["wider than the window"] if wide > 0 else [])]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver_path = which("chromium"), which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield Browser(driver)
    driver.quit()


def test_every_figure_is_seen_and_answers_at_both_widths(browser: Browser, make_study: Callable[..., Path]) -> None:
    page = write_report(load_results(make_study(kinds={EVIL: "self-tuned", "random": "constant"}, hps=(EVIL, "b"))))
    for width in WIDTHS:
        browser.open(page, width)
        looked = browser.run(LOOK)
        assert [figure for figure, *_ in looked] == FIGURES
        assert all(seen and drawn > 1 for _, seen, drawn, _ in looked), looked
        for figure in FIGURES[:4]:
            assert f"{EVIL}, " in browser.point_at(figure)
        assert browser.trouble() == []


def test_a_method_a_measure_and_a_hyperparameter_can_be_picked(
    browser: Browser, make_study: Callable[..., Path]
) -> None:
    browser.open(write_report(load_results(make_study())), WIDTHS[0], "dark")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    before = browser.run(LOOK)
    browser.run('document.querySelector("#methods button").click()')  # stn, of three methods
    assert "stn" not in browser.point_at("cost_total")
    for (figure, _, drawn, _), (_, _, left, _) in zip(before, browser.run(LOOK), strict=True):
        assert left < drawn, figure
    pick = (
        'const select = document.getElementById("{}"); select.value = "{}"; select.dispatchEvent(new Event("change"));'
    )
    browser.run(pick.format("measure", "val_accuracy"))
    values = [float(line.rpartition(": ")[2]) for line in browser.point_at("cost_total").splitlines()[1:]]
    assert len(values) == 8  # of two methods, each three runs and the mean
    assert all(0.5 < value < 1 for value in values)
    browser.run(pick.format("hp", "weight_decay"))
    assert [figure for figure, seen, *_ in browser.run(LOOK) if not seen] == ["schedule-0", "value-0"]
    assert browser.trouble() == []


def test_a_study_whose_every_run_failed_says_so(browser: Browser, make_study: Callable[..., Path]) -> None:
    found = load_results(make_study())
    lost = found.reports.assign(val_loss=np.nan, status="failed")
    for reports in (lost, lost.iloc[:0]):
        page = write_report(replace(found, reports=reports, incumbent=best_so_far(reports)))
        for width in WIDTHS:
            browser.open(page, width)
            looked = browser.run(LOOK)
            assert [figure for figure, *_ in looked] == FIGURES
            assert all(seen and "nothing to show" in text for _, seen, _, text in looked), looked
            assert "No run has a finite validation loss." in browser.run("return document.body.innerText")
            assert browser.trouble() == []
