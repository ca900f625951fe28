"""The package keeps its layers: folders import in one direction, and modules stay short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ugicm

PACKAGE = Path(ugicm.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(module: str) -> str:
    """Return the folder that a module such as ``ugicm.models.layers`` is in; for one at the top level its own name."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else module


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at any place but under ``TYPE_CHECKING``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ugicm":
            found |= {f"ugicm.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name for name in found if name.startswith("ugicm.") and not name.startswith("ugicm.__")}


def test_folders_have_no_import_cycle():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        relative = path.relative_to(PACKAGE.parent).with_suffix("")
        own = unit(".".join(relative.parts).removesuffix(".__init__"))
        if own != "ugicm":  # the package itself hands out what its modules define
            graph.setdefault(own, set()).update({unit(name) for name in imported_modules(path)} - {own})
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_modules_and_folders_are_small():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert {path.name: count for path, count in lines.items() if count > 350} == {}
    for folder in filter(Path.is_dir, PACKAGE.iterdir()):
        inside = sum(count for path, count in lines.items() if folder in path.parents)
        assert inside <= sum(lines.values()) / 4, folder
