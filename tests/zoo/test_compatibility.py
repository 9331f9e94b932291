"""Every image pipeline of diffusers, compared with each image run alone. The document shows what these tests find."""

import pytest
from versions import IS_OLD

from . import document, outcomes
from .case import Case, Variant
from .cases import CASES
from .classes import image_classes, is_of_diffusers, pipeline_class, why_not
from .examination import EXAMINATIONS, examine

EVERY = [
    pytest.param(case, variant, id=f"{name}-{variant}", marks=() if case.fast and not number else pytest.mark.slow)
    for name, case in CASES.items()
    for number, variant in enumerate(case.variants)
]


@pytest.mark.parametrize(("case", "variant"), EVERY)
def test_a_pipeline_is_right_or_refused_by_name(case: Case, variant: Variant) -> None:
    verdicts = examine(case, case.build(), variant)
    assert {what: verdict for what, verdict in verdicts.items() if verdict.is_fault} == {}
    found = {what: outcomes.outcome_of(verdict) for what, verdict in verdicts.items()}
    assert found == outcomes.read()[case.pipeline][variant], "run `make compatibility`"


@pytest.mark.skipif(IS_OLD, reason="the cases and the document are those of the newest diffusers")
def test_every_image_pipeline_is_examined_or_the_reason_is_stated() -> None:
    missing = [name for name in image_classes() if name not in CASES and why_not(name) is None]
    assert missing == [], "new in diffusers: add a case, or a reason to NOT_EXAMINED"
    assert set(CASES) <= set(image_classes())
    assert len(CASES) >= 60


def test_each_case_is_recorded() -> None:
    on_record = {name: set(variants) for name, variants in outcomes.read().items()}
    assert on_record == {name: set(case.variants) for name, case in CASES.items()}
    assert all(set(found) == set(EXAMINATIONS) for variants in outcomes.read().values() for found in variants.values())


@pytest.mark.skipif(IS_OLD, reason="the cases and the document are those of the newest diffusers")
def test_the_document_shows_what_is_recorded() -> None:
    for path, text in document.files(outcomes.read()):
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make compatibility`"


def test_a_subclass_with_the_name_of_a_pipeline_is_not_examined() -> None:
    kind = pipeline_class("StableDiffusionPipeline")
    assert is_of_diffusers(kind)
    assert not is_of_diffusers(type(kind.__name__, (kind,), {"__module__": kind.__module__}))
