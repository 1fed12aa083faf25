"""Counts what an input makes the program do: every block of code that is entered, each time.

Modules of virtirq that are imported after `install` count in `hits`: how often each function,
branch, loop's body and comprehension's round was entered. New kinds of counts tell that an input
is worth keeping; their sum is the work that it took, and the same on every machine.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

_HITS: Final = "_hits_"
_HERE: Final = "_here_"

hits: defaultdict[int, int] = defaultdict(int)
"""How often each place was passed, since somebody cleared it."""


def installed() -> bool:
    return any(isinstance(each, _Finder) for each in sys.meta_path)


def install() -> None:
    """Raises RuntimeError where virtirq is there already, and would count nothing."""
    if "virtirq" in sys.modules:
        raise RuntimeError("virtirq is imported already")
    sys.meta_path.insert(0, _Finder())


def _here(place: int) -> bool:
    hits[place] += 1
    return True


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "virtirq":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _counting.visit(ast.parse(self.get_data(path), path))
        code = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        assert isinstance(code, CodeType)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update({_HITS: hits, _HERE: _here})
        super().exec_module(module)


class _Counting(ast.NodeTransformer):
    """Puts a count at the start of every block, and into every round of a comprehension."""

    def __init__(self) -> None:
        self._places = 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.comprehension):
            here = ast.Call(ast.Name(_HERE, ast.Load()), [self._place()], [])
            node.ifs.insert(0, here)
        elif not isinstance(node, ast.Module | ast.ClassDef):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and block:
                    # A docstring stays first.
                    block.insert(isinstance(node, ast.FunctionDef), self._count())
        return node

    def _place(self) -> ast.Constant:
        self._places += 1
        return ast.Constant(self._places)

    def _count(self) -> ast.stmt:
        at = ast.Subscript(ast.Name(_HITS, ast.Load()), self._place(), ast.Store())
        return ast.AugAssign(at, ast.Add(), ast.Constant(1))


_counting = _Counting()
