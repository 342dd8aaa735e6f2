from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tune_stn.study.incumbent import best_so_far
from tune_stn.study.report import write_report
from tune_stn.study.results import Results, load_results
from tune_stn.study.summary import format_summary, summary

EVIL = "<script>alert('x')</script>&\""


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_one_page_that_needs_nothing_else(results: Results) -> None:
    path = write_report(results)
    page = Page(path)
    assert path == results.path / "report.html"
    assert page.open == []
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    plots = sorted((results.path / "plots").iterdir())
    embedded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in pictures]
    assert sorted(embedded) == sorted(plot.read_bytes() for plot in plots)
    assert len(plots) == 4
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe"}
    assert not re.search(r"https?:|@import|url\(", path.read_text())


@pytest.mark.usefixtures("undrawn")
def test_it_says_what_the_terminal_says(results: Results) -> None:
    page = Page(write_report(results))
    for row in format_summary(summary(results)).splitlines()[3:]:
        assert all(cell in page.text for cell in re.split(r"  +", row))
    for said in ("Differences to the best method", "weight_decay", "2.13.0", "abc123", "tune-stn compare"):
        assert said in page.text


@pytest.mark.usefixtures("undrawn")
def test_missing_runs_and_trials_that_diverged_or_were_started_again_are_named(make_study: Callable[..., Path]) -> None:
    results = load_results(make_study(missing=[{"method": "pbt", "seed": 2, "reason": "worker died"}]))
    results.study["restarts"] = [{"method": "stn", "seed": 1, "trial_id": "x", "reason": "KeyError: <1>", "epoch": 3}]
    page = Page(write_report(results))
    assert "stn1xKeyError: <1>3" in page.text
    assert "worker died" in page.text
    assert "random-0-1diverged" in page.text
    lost = results.reports["val_loss"].mask(results.reports["method"] == "stn", np.nan)
    reports = results.reports.assign(val_loss=lost)
    page = Page(write_report(replace(results, reports=reports, incumbent=best_so_far(reports))))
    assert "stn1no finite validation loss" in page.text


@pytest.mark.usefixtures("undrawn")
def test_everything_from_the_user_is_escaped(make_study: Callable[..., Path]) -> None:
    missing = [{"method": EVIL, "seed": 1, "reason": EVIL}]
    kinds = {EVIL: "constant", "stn": "self-tuned"}
    study = make_study(kinds=kinds, hps=(EVIL, "b"), task=EVIL, missing=missing)
    results = load_results(study)
    results.study["settings"][EVIL] = EVIL
    results.study["command"] = EVIL
    page = Page(write_report(results))
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 10


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", [["pbt", "random"], ["pbt", "random", "stn"]])
def test_a_study_of_which_little_is_left_is_reported(make_study: Callable[..., Path], missing: list[str]) -> None:
    gone = [{"method": method, "seed": seed, "reason": "killed"} for method in missing for seed in range(3)]
    results = load_results(make_study(missing=gone[:6]))
    left = results.reports[~results.reports["method"].isin(missing)]
    page = Page(write_report(replace(results, reports=left, incumbent=best_so_far(left))))
    assert "Fewer than two methods have a value" in page.text
