"""Attributes of foreign objects: set for a while, and what torch must do for it."""

import ast
from pathlib import Path

import pytest
import torch

from cotrunk import CotrunkError
from cotrunk.engine import patch

SOURCE = Path(patch.__file__).parents[1]
# they set attributes of a pipeline that they have just made
OWN = {"pipelines/source.py", "pipelines/image_inputs.py"}


def test_an_intercepted_module_runs_the_replacement_and_is_restored() -> None:
    module = torch.nn.Linear(2, 2)
    before = dict(vars(module))
    with patch.intercepted(module, lambda value: value * 2):
        assert module(3) == 6
        assert patch.call_of(module)(4) == 8
    assert dict(vars(module)) == before
    assert patch.interceptor_of(module) is None


def test_a_torch_that_calls_modules_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__call__", torch.nn.Module._call_impl)
    patch.check_dispatch.cache_clear()
    with pytest.raises(CotrunkError, match="no longer calls modules through _compiled_call_impl"):
        patch.intercepted(torch.nn.Identity(), lambda value: value)
    monkeypatch.undo()
    patch.check_dispatch.cache_clear()
    patch.check_dispatch()


def test_a_replaced_class_attribute_is_visible_again_afterwards() -> None:
    class Owner:
        name = "class"

    owner = Owner()
    with patch.replaced(owner, "name", "instance"):
        assert owner.name == "instance"
    assert owner.name == "class"
    assert not vars(owner)


def test_no_other_module_sets_attributes_of_foreign_objects() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Assign) else ""
            called = text.startswith(("setattr(", "delattr(")) and isinstance(node, ast.Call)
            changes = isinstance(node, ast.Call) and text.startswith("vars(") and ").update(" in text.split("=")[0]
            if called or (changes and not text.startswith("vars(self)")) or ".__class__ = " in text:
                found.append(str(path.relative_to(SOURCE)))
    assert set(found) == OWN | {"engine/patch.py"}
