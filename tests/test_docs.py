"""README is short, the generated page is that of the schemas, and the documentation builds without a broken link."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES, MOST_WORDS = 150, 20


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_the_glossary_is_short() -> None:
    rows = re.findall(r"(?m)^\| .*\|$", (ROOT / "docs" / "glossary.md").read_text())
    assert len(rows) - 2 <= MOST_WORDS


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == []
    assert len(links) > 10


def test_the_page_of_the_tables_is_that_of_the_schemas() -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "schema.py", "--check"], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_documentation_builds_without_a_broken_link(tmp_path: Path) -> None:
    for needed in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: `make docs` installs it, or pip install 'tune_stn[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert len(pages) > 25
    # What a page loads lies beside it: no fonts, scripts, pictures or styles from elsewhere.
    loaded = r'<(?:script|img|iframe)[^>]*\ssrc="https?:|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:'
    assert not any(re.search(loaded, page) for page in pages)
