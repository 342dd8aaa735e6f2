from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tune_stn.study.results import Results, export_results, load_results

TABLES = ["reports", "schedule", "incumbent"]


def test_load_reads_all_of_a_study(results: Results) -> None:
    assert results.study["task"] == "digits-mlp"
    assert set(results.reports["method"]) == {"stn", "pbt", "random"}
    assert {"hp/dropout", "val_accuracy"} <= set(results.reports)
    assert set(results.schedule["hp"]) == {"dropout", "weight_decay"}
    assert results.incumbent.groupby(["method", "seed"]).ngroups == 9


def test_parquet_export_loads_again(results: Results, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    written = export_results(results, out, "parquet")
    assert sorted(out.iterdir()) == sorted(written)
    again = load_results(out)
    assert again.study == results.study
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(results, name))


def test_csv_export_keeps_every_digit(results: Results, tmp_path: Path) -> None:
    written = export_results(results, str(tmp_path), "csv")
    assert [path.name for path in written] == [*(f"{name}.csv" for name in TABLES), "study.json"]
    for name in TABLES:
        frame = pd.read_csv(tmp_path / f"{name}.csv", engine="pyarrow")  # reads every digit, in pandas 2 too
        expected = getattr(results, name)
        pd.testing.assert_frame_equal(frame, expected, check_exact=True, check_dtype=False)


def test_an_export_that_cannot_be_is_said(results: Results, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'xlsx' is not one of parquet, csv"):
        export_results(results, tmp_path, "xlsx")
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(OSError, match=f"cannot write to .*{out}: "):
            export_results(results, tmp_path / out, "csv")


def test_what_is_no_study_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"not a directory: .*nowhere"):
        load_results(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a study directory"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task": ', r"study\.json is damaged \(no JSON.*restore it"),
        (b"\xff\xfe\x00", r"study\.json is damaged"),
        (b"[]", "it is a list, not an object"),
        (b'{"schema_version": 9}', "schema version 9, not 1"),
        (b'{"schema_version": 1, "methods": [], "seeds": [], "missing": [], "task": 3}', "task is 3, not a text"),
    ],
)
def test_a_damaged_description_is_one_clear_line(make_study: Callable[..., Path], content: bytes, message: str) -> None:
    path = make_study()
    (path / "study.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_results(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_or_missing_table_is_named(make_study: Callable[..., Path], name: str) -> None:
    path = make_study()
    (path / f"{name}.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=rf"{name}\.parquet is damaged"):
        load_results(path)
    (path / f"{name}.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.parquet"):
        load_results(path)


def test_unknown_keys_of_the_description_are_kept(make_study: Callable[..., Path]) -> None:
    path = make_study()
    study = json.loads((path / "study.json").read_text()) | {"note": "ok"}
    (path / "study.json").write_text(json.dumps(study))
    assert load_results(path).study["note"] == "ok"


# As a person sees it ------------------------------------------------------------------------------------------------


def test_it_says_what_was_compared_what_was_found_and_what_is_missing(make_study: Callable[..., Path]) -> None:
    kinds = {"stn": "self-tuned", "<b>mine</b>": "constant"}
    missing = [{"method": "stn", "seed": 1, "reason": "it\ndied & went"}]
    found = load_results(make_study(kinds=kinds, missing=missing, task="<i>digits</i>"))
    best = found.summary().set_index("method")["best_val_loss"]
    text = repr(found)
    assert text.startswith(
        "<i>digits</i>: stn, <b>mine</b> at seeds 0, 1, 2, budget 36 plain-epoch equivalents a run, "
    )
    assert f"stn {best['stn']:.4g} (1 missing)" in text
    assert f"<b>mine</b> {best['<b>mine</b>']:.4g}" in text
    assert text.endswith("Incomplete: stn, seed 1: it died & went.")
    assert "\n" not in text
    page = found._repr_html_()
    assert "<b>" not in page
    assert "<i>" not in page
    assert "seed 1: it died &amp; went." in page
    assert page.count("&lt;b&gt;mine&lt;/b&gt;") == 3  # what was compared, what was found, and the row of the summary
    assert "<table" in page


def test_where_much_is_missing_not_all_is_named(make_study: Callable[..., Path]) -> None:
    missing = [{"method": "stn", "seed": seed, "reason": "not begun"} for seed in range(10)]
    found = load_results(make_study(kinds={"stn": "self-tuned", "fixed": "constant"}, seeds=range(10), missing=missing))
    text = repr(found)
    assert " stn, fixed at seeds 0, 1, ..., 9, " in text
    assert ", stn none (10 missing). " in text
    assert text.count("not begun") == 5
    assert text.endswith("Incomplete, too: 5 more runs.")


@pytest.mark.parametrize("kind", ["incumbent", "incumbent-seconds", "schedule", "final-values"])
def test_a_picture_is_a_figure_that_a_notebook_shows(results: Results, kind: str) -> None:
    figure = results.plot(kind)
    assert isinstance(figure, Figure)
    if kind == "incumbent":
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    labels = {"incumbent": "cost", "incumbent-seconds": "first trial", "schedule": "step", "final-values": "dropout"}
    assert labels[kind] in figure.axes[0].get_xlabel()


def test_a_kind_of_picture_that_there_is_not_is_refused_with_those_that_are(results: Results) -> None:
    accepted = "incumbent, incumbent-seconds, schedule, final-values"
    with pytest.raises(ValueError, match=f"kind='pie' is not one of {accepted}"):
        results.plot("pie")
