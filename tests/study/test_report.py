from __future__ import annotations

import base64
import hashlib
import json
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
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_one_page_that_needs_nothing_else(results: Results) -> None:
    path = write_report(results)
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert path == results.path / "report.html"
    assert page.open == []
    assert len(list((results.path / "plots").iterdir())) == 4
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object"}
    assert not re.search(r"https?:|@import|url\(", text)
    assert len(text) < 250_000


@pytest.mark.usefixtures("undrawn")
def test_the_pages_policy_allows_its_own_script_and_no_other(results: Results) -> None:
    text = write_report(results).read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval", script)


@pytest.mark.usefixtures("undrawn")
def test_metrics_stand_beside_the_loss_and_what_mattered_beside_optuna(make_study: Callable[..., Path]) -> None:
    results = load_results(make_study(kinds={"stn": "self-tuned", "random": "constant", "auto": "self-tuned"}))
    page = Page(write_report(results))
    best = results.incumbent.groupby(["method", "seed"]).tail(1).merge(results.reports)
    found = best[best["best_val_loss"] == best["val_loss"]].groupby("method")["val_accuracy"].mean()
    assert all(f"{value:.4g}" in page.text for value in found)
    for said in ("val_accuracy", "stn: movement", "random: Optuna's evaluators", "(12 trials)", "auto moves all"):
        assert said in page.text


@pytest.mark.usefixtures("undrawn")
def test_it_says_how_much_of_the_gain_the_replay_keeps(make_study: Callable[..., Path]) -> None:
    kinds = {"fixed": "constant", "auto": "self-tuned", "replayed": "self-tuned"}
    results = load_results(make_study(kinds=kinds))
    share = results.controls.set_index("control").loc["replayed", "share"]
    assert f"replayed keeps {100 * share:.0f} % of auto's gain" in Page(write_report(results)).text


@pytest.mark.usefixtures("undrawn")
def test_it_says_what_the_terminal_says(results: Results) -> None:
    page = Page(write_report(results))
    for row in format_summary(summary(results)).splitlines()[3:]:
        assert all(cell in page.text for cell in re.split(r"  +", row))
    for said in ("Differences to the best method", "weight_decay", "2.13.0", "abc123", "tune-stn compare"):
        assert said in page.text


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_everything_from_the_user_is_escaped(make_study: Callable[..., Path]) -> None:
    missing = [{"method": EVIL, "seed": 1, "reason": EVIL}]
    kinds = {EVIL: "constant", "stn": "self-tuned"}
    study = make_study(kinds=kinds, hps=(EVIL, "b"), task=EVIL, missing=missing)
    results = load_results(study)
    results.study["settings"][EVIL] = EVIL
    results.study["command"] = EVIL
    path = write_report(results)
    page = Page(path)
    assert page.open == []
    assert [dict(attributes) for tag, attributes in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert page.text.count(EVIL) > 10
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), flags=re.DOTALL)
    assert [one["name"] for one in json.loads(data)["methods"]] == [EVIL, "stn"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", [["pbt", "random"], ["pbt", "random", "stn"]])
def test_a_study_of_which_little_is_left_is_reported(make_study: Callable[..., Path], missing: list[str]) -> None:
    gone = [{"method": method, "seed": seed, "reason": "killed"} for method in missing for seed in range(3)]
    results = load_results(make_study(missing=gone[:6]))
    left = results.reports[~results.reports["method"].isin(missing)]
    page = Page(write_report(replace(results, reports=left, incumbent=best_so_far(left))))
    assert "Fewer than two methods have a value" in page.text
