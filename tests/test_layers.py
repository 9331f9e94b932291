"""Imports: a package imports only from the layers below its own, never from its own layer."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "cotrunk"
# lowest first; packages in one line do not import from each other
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files", "checks", "plotting"),
    ("settings", "lock", "storage"),
    ("mini",),
    ("pipelines",),
    ("engine", "planning"),
    ("skipping", "drawing", "trunks"),
    ("groups", "result"),
    ("execution",),
    ("generation",),
    ("apply_skipping",),
    ("evaluation",),
    ("training",),
    ("tuning", "runs"),
    ("service",),
    ("cluster",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(module: str) -> Iterator[str]:
    """Return the modules of cotrunk that a module imports, including imports in functions and for type checkers."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" and module != "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert not name.name.startswith("cotrunk"), f"{module} imports {name.name}: use a relative import"
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            name = ".".join([*base, alias.name])
            found = name if name in MODULES else ".".join(base)
            if found and found != module:
                yield found


EDGES = {module: sorted({*imported(module)}) for module in MODULES if module != "__init__"}


@pytest.mark.parametrize("module", EDGES)
def test_a_module_imports_only_from_layers_below(module: str) -> None:
    own = module.split(".")[0]
    for other in EDGES[module]:
        package = other.split(".")[0]
        assert package == own or LEVEL[package] < LEVEL[own], f"{module} imports {other}"


def test_every_module_has_a_layer() -> None:
    assert {module.split(".")[0] for module in EDGES} == {*LEVEL}


def test_the_top_level_holds_at_most_a_dozen_modules() -> None:
    assert len([*ROOT.glob("*.py")]) <= 12


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    done, path = set[str](), list[str]()

    def visit(module: str) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module in done:
            return
        path.append(module)
        for other in EDGES.get(module, ()):
            visit(other)
        done.add(path.pop())

    for module in EDGES:
        visit(module)


def test_contributing_lists_the_layers() -> None:
    text = (ROOT.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = text.partition("```text\n")[2].partition("```")[0]
    assert [tuple(line.split(", ")) for line in shown.splitlines()] == [*LAYERS[:-1]]  # the last is __main__
