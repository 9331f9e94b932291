"""Attributes of foreign objects: set for a while, and what torch must do for it."""

import pytest
import torch

from cotrunk import CotrunkError
from cotrunk.engine import patch


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


def test_an_attribute_of_the_class_shows_again() -> None:
    class Owner:
        name = "class"

    owner = Owner()
    with patch.replaced(owner, "name", "instance"):
        assert owner.name == "instance"
    assert owner.name == "class"
    assert not vars(owner)
