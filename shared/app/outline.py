"""Loads a config class without importing its module, so that help and refusals need not wait seconds for PyTorch.

Only the statement that defines the class is run, and before it the statements that define the names it uses, wherever in
this repository they are. The standard library is imported, loaded modules of shared.app are used, other libraries are not.
"""

from __future__ import annotations
import __future__

import ast
import sys
from dataclasses import is_dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOMS = ("shared", "data", "reward_model", "rl_finetune")


class Absent(Exception):
    """A name that cannot be loaded without importing a library."""


class Outline:
    """The top-level statements of one module, each run only when its name is asked for."""

    def __init__(self, module: str) -> None:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(module)
        self.source = Path(spec.origin).read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self._module = module
        self._statements = {name: node for node in self.tree.body for name in _defined(node)}
        # dataclasses and typing look up a class's module in sys.modules; this one is in it.
        self._namespace: dict[str, Any] = {"__name__": __name__}
        self._under_way: set[str] = set()

    @property
    def doc(self) -> str:
        """The module's docstring."""
        return ast.get_docstring(self.tree) or ""

    def get(self, name: str) -> Any:
        """Returns the value of a top-level name. Raises Absent when it needs a library."""
        if name not in self._namespace:
            if name not in self._statements:
                raise Absent(f"{self._module}.{name}")
            self._under_way.add(name)
            try:
                self._load(name, self._statements[name])
            finally:
                self._under_way.remove(name)
        return self._namespace[name]

    def evaluate(self, node: ast.expr) -> Any:
        """Returns the value of an expression in this module. Raises Absent when it needs a library."""
        self._load_names_in(node)
        try:
            return eval(_compiled(ast.Expression(node), "eval"), self._namespace)
        except NameError as error:
            raise Absent(f"{self._module}: {error}") from None

    def _load(self, name: str, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._namespace[name] = self._imported(name, node)
            return
        absent = self._load_names_in(node)
        if absent and isinstance(node, ast.FunctionDef):
            raise Absent(f"{self._module}.{name} needs {', '.join(absent)}")
        try:
            exec(_compiled(ast.Module([node], []), "exec"), self._namespace)
        except NameError as error:
            raise Absent(f"{self._module}.{name}: {error}") from None
        if isinstance(node, ast.ClassDef) and is_dataclass(self._namespace[name]):
            self._complete(self._namespace[name], node)

    def _complete(self, schema: Any, node: ast.ClassDef) -> None:
        schema.__definition__ = (self, node)
        fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
        schema.__annotations__ = {ast.unparse(field.target): self.evaluate(field.annotation) for field in fields}
        for method in node.body:
            # The command itself checks invariants that need a library.
            if getattr(method, "name", "") == "__post_init__" and self._load_names_in(method):
                schema.__post_init__ = lambda self: None

    def _load_names_in(self, node: ast.AST) -> list[str]:
        """Returns the top-level names in a piece of code that are absent, after loading the others."""
        absent = []
        for name in {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}:
            if name in self._statements and name not in self._namespace and name not in self._under_way:
                try:
                    self.get(name)
                except Absent:
                    absent.append(name)
        return absent

    def _imported(self, name: str, node: ast.Import | ast.ImportFrom) -> Any:
        (alias,) = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) == name]
        module = alias.name if isinstance(node, ast.Import) else str(node.module)
        if module in sys.stdlib_module_names or _is_loaded_already(module):
            imported = import_module(module)
            return imported if isinstance(node, ast.Import) else getattr(imported, alias.name)
        if isinstance(node, ast.ImportFrom) and module.partition(".")[0] in ROOMS:
            return outline_of(module).get(alias.name)
        raise Absent(f"{module}.{alias.name}")


@lru_cache
def outline_of(module: str) -> Outline:
    """Returns the outline of a module of this repository."""
    return Outline(module)


def definition_of(schema: Any) -> tuple[Outline, ast.ClassDef]:
    """Returns where a config class is defined: the outline of its module, and its class statement."""
    if not hasattr(schema, "__definition__"):
        schema = outline_of(schema.__module__).get(schema.__name__)
    return schema.__definition__


def _is_loaded_already(module: str) -> bool:
    """Whether a module is a loaded one of shared.app, whose UserError must be the same class everywhere."""
    return module in sys.modules and module.startswith("shared.app.")


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [inner.id for target in targets if target for inner in ast.walk(target) if isinstance(inner, ast.Name)]


def _compiled(tree: ast.Module | ast.Expression, mode: str) -> Any:
    # As in the modules themselves: a method's annotation may name a class that is not defined yet.
    return compile(tree, "<outline>", mode, flags=__future__.annotations.compiler_flag, dont_inherit=True)
