"""Measures how densely source code is written: tokens, code lines, comment lines, arguments."""

import ast
import dataclasses
import io
import tokenize
from pathlib import Path

LAYOUT = (
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one file, or several together, ask of a reader."""

    lines: int
    """All lines."""
    code_lines: int
    """Lines with code on them; docstrings, comments and empty lines are none."""
    tokens: int
    """Python tokens without comments, docstrings and layout."""
    comment_lines: int
    """Lines that hold nothing but a comment."""

    def __add__(self, other: "Reading") -> "Reading":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Reading(*(a + b for a, b in pairs))


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines that docstrings of modules, classes and functions take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, DEFINITIONS) or not node.body:
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        if isinstance(first.value.value, str):
            lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def read(path: Path) -> Reading:
    """Measures one file."""
    source = path.read_text(encoding="utf-8")
    documentation = docstring_lines(ast.parse(source, str(path)))
    tokens, comment_lines, code_lines = 0, 0, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment_lines += token.line.lstrip().startswith("#")
        elif token.type not in LAYOUT and token.start[0] not in documentation:
            tokens += 1
            code_lines.update(range(token.start[0], token.end[0] + 1))
    return Reading(len(source.splitlines()), len(code_lines), tokens, comment_lines)


def argument_counts(path: Path) -> dict[str, int]:
    """The number of named arguments (`self` too) of every function, by `Class.function` name."""
    counts = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{child.name}."
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = child.args
                named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                counts[name[:-1]] = len(named)
            visit(child, name)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), "")
    return counts
