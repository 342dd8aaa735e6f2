"""The docstrings of the package: what they say of each argument and attribute can be read by itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tune_stn

ROOT = Path(tune_stn.__file__).parent
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples?|Notes?):$")
ENTRY = re.compile(r"    (?P<names>[*\w][\w*, ]*): ?(?P<text>.*)$")
PREPOSITIONS = {
    *("after", "among", "as", "at", "before", "beside", "between", "by", "during", "for", "from", "in", "into", "of"),
    *("on", "over", "per", "since", "through", "to", "under", "until", "with", "within", "without"),
}
# "as above" in other words: whoever looks one argument up has to look another one up for it.
ELSEWHERE = {"ditto", "likewise", "same", "see"}


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and text of each entry of the sections `Args` and `Attributes`; further lines are joined to the first."""
    wanted, found = False, []
    for line in docstring.splitlines():
        if section := SECTION.match(line):
            wanted = section[1] in ("Args", "Attributes")
        elif line and not line.startswith(" "):
            wanted = False
        elif wanted and (entry := ENTRY.match(line)):
            found.append((entry["names"], entry["text"]))
        elif wanted and line.startswith("     "):
            names, text = found.pop()
            found.append((names, f"{text} {line.strip()}"))
        elif wanted and line:
            found.append((line.strip(), ""))
    yield from found


def wrong(text: str) -> str:
    """What is wrong with the text of an entry; empty if nothing is."""
    first = re.match(r"[A-Za-z]*", text)[0].lower()  # type: ignore[index]
    if not text:
        return "says nothing"
    if text[0].islower():
        return "begins with a small letter"
    if first in PREPOSITIONS:
        return f"begins with a preposition, {first!r}"
    if first in ELSEWHERE:
        return f"sends the reader elsewhere, by {first!r}"
    return "" if text.endswith((".", ".)")) else "does not end with a full stop"


def complaints(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for names, text in entries(ast.get_docstring(node) or ""):
                if complaint := wrong(text):
                    yield f"{node.name}, line {node.lineno}: {names}: {text!r} {complaint}"


def test_each_argument_and_attribute_is_a_sentence_or_a_noun_phrase_of_its_own() -> None:
    paths = sorted(ROOT.rglob("*.py"))
    assert [f"{path.relative_to(ROOT)}: {one}" for path in paths for one in complaints(path.read_text())] == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("of the modules.", "small letter"),
        ("number of classes.", "small letter"),
        ("Of the modules.", "preposition, 'of'"),
        ("As for `lr`.", "preposition, 'as'"),
        ("See the class.", "elsewhere"),
        ("Likewise.", "elsewhere"),
        ("Number of classes", "full stop"),
        ("", "nothing"),
    ],
)
def test_the_check_finds_what_it_looks_for(text: str, complaint: str) -> None:
    docstring = f"Do.\n\n    Args:\n        a: Paths of\n            modules.\n        b: {text}\n    "
    source = f"class A:\n  def f(self, a, b):\n    {docstring!r}"
    (found,) = complaints(source)
    assert found.startswith("f, line 2: b: ")
    assert complaint in found


@pytest.mark.parametrize(
    "text",
    ["Paths of the modules.", "`True` to begin.", "Name -> value (of each.)", "How often, at\n                least."],
)
def test_the_check_accepts(text: str) -> None:
    assert list(complaints(f'def f(a):\n    """Do.\n\n    Attributes:\n        a: {text}\n    """')) == []
