"""Files and functions are short enough to read at once, or say why not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Lines of a function without its docstring. Between the two, one of Python has a comment above: "# Over 80 lines, ...".
SHORT, LONG = 80, 120
LINES = 400
PYTHON = sorted(path for top in ("src", "benchmarks", "release") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CPP = sorted(path for suffix in ("*.h", "*.cpp") for path in (ROOT / "csrc").rglob(suffix))
# From the longest match on: a comment, a string or a character, in which braces mean nothing.
SKIPPED = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL)
BLOCK = re.compile(r"(?:^|\s)(?:namespace|struct|class|enum|union|extern)\b[^()=]*$")


def python_functions(source: str) -> Iterator[tuple[str, int, bool]]:
    """Name, lines without docstring, and whether a comment above says why it is long, of every function."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            docstring = node.body[0] if ast.get_docstring(node) else None
            documented = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
            excused = first > 1 and lines[first - 2].strip().startswith("# Over 80 lines")
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - documented, excused


def cpp_functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and lines of every function; what is inside a function belongs to it."""
    text = SKIPPED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)
    text = re.sub(r"^[ \t]*#[^\n]*(?:\\\n[^\n]*)*", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.M)
    depth, start, name, since = 0, 0, "", 0
    for mark in re.finditer(r"[{};]", text):
        head, since = text[since : mark.start()], mark.end()
        if mark[0] == "{" and (depth or not BLOCK.search(head)):
            if not depth:
                begin = mark.start() - len(head.lstrip())
                named = re.findall(r"([\w~]+|operator\S+)\s*\(", head)
                start, name = text.count("\n", 0, begin), next((word for word in named if word != "__attribute__"), "")
            depth += 1
        elif mark[0] == "}" and depth:
            depth -= 1
            if not depth and name:
                yield name, text.count("\n", 0, mark.end()) - start + 1


def test_functions_of_cpp_are_found():
    source = """
    // not a brace: {
    namespace {
    struct Tile {
      int n = 0;
      explicit Tile(int n) : n(n) {}
      template <class F> void each(F&& body) const {
        if (n) {
          run([&](int i) { body(i); });
        }
      }
    };
    }  // namespace
    """
    assert list(cpp_functions(source)) == [("Tile", 1), ("each", 5)]


def test_functions_are_short():
    found = {}
    for path in PYTHON:
        for name, lines, excused in python_functions(path.read_text("utf-8")):
            if lines > (LONG if excused else SHORT):
                found[f"{path.relative_to(ROOT).as_posix()} {name}"] = lines
    for path in CPP:
        for name, lines in cpp_functions(path.read_text("utf-8")):
            if lines > LONG:
                found[f"{path.relative_to(ROOT).as_posix()} {name}"] = lines
    assert not found, f"split these, or say why not: {found}"


def test_a_long_file_says_why_at_the_top():
    found = {}
    for path in [*PYTHON, *TESTS, *CPP]:
        lines = path.read_text("utf-8").splitlines()
        if len(lines) > LINES and "Over 400 lines" not in " ".join(lines[:3]):
            found[path.relative_to(ROOT).as_posix()] = len(lines)
    assert not found, f"split these, or say why not: {found}"
