"""The installed packages have every class that cotrunk names as text, and every private name that it reads."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest
from versions import IS_OLD

from cotrunk.pipelines import class_tables as tables
from cotrunk.pipelines.internals import INTERNALS
from cotrunk.pipelines.schedulers import SCHEDULERS

SOURCE = Path(tables.__file__).parents[1]
EXACT = {
    **dict.fromkeys(tables.OUTPUT_FORMS, "model"),
    **{
        name: "pipeline"
        for table in (
            tables.TWO_IMAGES_PER_SCHEDULER,
            tables.REFERENCES,
            tables.ONE_IMAGE_PER_PROMPT,
            tables.REPEATS_ITSELF,
            tables.MORE_GUIDANCE,
        )
        for name in table
    },
    **{name: "scheduler" for table in (tables.SINGLE_GENERATOR, tables.ENDS_ON_TIMESTEP) for name in table},
    **{name: "scheduler" for name, _ in SCHEDULERS.values()},
}
PREFIXES = [
    *tables.OWN_LOOPS,
    *tables.CONDITIONAL_FIRST,
    *tables.OPTIONAL_IMAGE,
    *tables.UNMASKED,
    *tables.APART,
    *tables.READS_ENCODED,
    *tables.NOT_SKIPPED,
    *tables.FLOW_SCHEDULERS,
]


@cache
def class_names() -> frozenset[str]:
    """Return the classes of diffusers, found in the text of its files, because importing them all takes a minute."""
    root = Path(diffusers.__file__).parent
    return frozenset(
        name
        for path in root.rglob("*.py")
        if "utils" not in path.relative_to(root).parts[0]  # placeholders for what is not installed
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize("name", EXACT)
def test_a_named_class_exists(name: str) -> None:
    if IS_OLD and name not in class_names():
        pytest.skip("newer than this version of diffusers")
    assert name in class_names()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_named_family_has_members(prefix: str) -> None:
    kinds = ("Scheduler",) if prefix in tables.FLOW_SCHEDULERS else ("Pipeline",)
    assert [name for name in class_names() if name.startswith(prefix) and name.endswith(kinds)]


def test_every_table_is_checked() -> None:
    known = {*EXACT, *PREFIXES}
    for name, table in vars(tables).items():
        if name.isupper():
            assert {*table} <= known, name


def test_no_other_module_names_a_class_of_diffusers() -> None:
    """Names in sentences and docstrings do not count, only strings that are a class name or the beginning of one."""
    for path in SOURCE.rglob("*.py"):
        if path.name in ("class_tables.py", "schedulers.py"):
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        exported = [node for node in module.body if ast.unparse(node).startswith("__all__")]  # names of its own
        for node in (node for part in module.body if part not in exported for node in ast.walk(part)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in class_names():
                pytest.fail(f"{path.relative_to(SOURCE)} names {node.value}: put it into class_tables.py")


# --- private attributes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in INTERNALS.items() for name in names])
def test_a_private_name_exists(owner: str, name: str) -> None:
    module = pytest.importorskip(owner)
    assert re.search(rf"\b{name}\b", Path(module.__file__).read_text(encoding="utf-8"))


def attributes_and_strings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the attributes of objects other than `self` and `cls`, and the strings, which may name attributes."""
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield node.value, node.lineno


def test_every_private_attribute_of_others_is_listed() -> None:
    # `_cotrunk` is ours, `_version` counts the changes of a tensor, `_getframe` is Python's
    listed = {"_cotrunk", "_version", "_getframe", *(name for names in INTERNALS.values() for name in names)}
    missing = list[str]()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = set(own_names(ast.walk(tree)))
        for name, line in attributes_and_strings(tree):
            if re.fullmatch(r"_[a-z]\w*", name) and name not in listed | own:
                missing.append(f"{path.relative_to(SOURCE)}:{line} {name}")
    assert not missing


def own_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names that a module defines itself: functions, classes, attributes and variables."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
