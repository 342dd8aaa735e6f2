"""What mkdocs does for this site beside its own work.

Pages and pictures that lie elsewhere in the repository are part of the site. Links between files are written as they
are in the repository, so that they work there; here they become links of the site. The page of the command line is
made from the commands themselves.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
RESULTS = "experiments/results/"
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
COMMANDS = "<!-- the commands -->"
LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures of other folders."""
    results = ROOT / RESULTS
    found = [path for kind in ("README.md", "*.png") for path in sorted(results.rglob(kind))]
    for path in [*(ROOT / page for page in PAGES), *found]:
        uri = to_site(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into links of the site, and fill in the commands."""
    here = page.file.src_uri

    def rewritten(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(to_repository(here)), link["path"]))
        if not (ROOT / target).is_file():
            return link[0]  # the strict build says what is wrong with it
        path = posixpath.relpath(to_site(target), posixpath.dirname(here) or ".")
        return f"]({path}{link['anchor'] or ''})"

    markdown = LINK.sub(rewritten, markdown)
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def to_site(path: str) -> str:
    """The address in the site of a file of the repository."""
    if path.startswith(RESULTS):
        return "results/" + path.removeprefix(RESULTS)
    return path.removeprefix("docs/")


def to_repository(uri: str) -> str:
    """The file of the repository behind an address in the site."""
    if uri.startswith("results/"):
        return RESULTS + uri.removeprefix("results/")
    return uri if uri in PAGES else f"docs/{uri}"


def commands() -> str:
    """Each command with its options, in the words of its own help."""
    from tune_stn.cli import main

    parts = []
    for name in main.list_commands(click.Context(main)):
        command = main.commands[name]
        context = click.Context(command, info_name=f"tune-stn {name}")
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)
