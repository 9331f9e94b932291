"""Names of image files: templates, their checks, and the layouts of benchmarks."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk.errors import CotrunkError
from cotrunk.runs.job import Job
from cotrunk.runs.layouts import laid_out
from cotrunk.runs.naming import ANY_SEED, LONGEST_NAME, ImageFacts, slug
from cotrunk.runs.output import Output

FOX = ImageFacts(7, 3, 1, "A red Fox, in the_snow!", "fox", 42)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("{image:05}", "00007.png"),
        ("{id}_{copy}", "fox_1.png"),
        ("{index:03}/{slug}-{copy:02}", "003/a-red-fox-in-the-snow-01.png"),
        ("{slug:.5}_{seed}", "a-red_42.png"),
        ("{prompt}", "A red Fox, in the_snow!.png"),
        ("{{{id}}}", "{fox}.png"),
    ],
)
def test_fields(name: str, path: str) -> None:
    assert Output(name=name).path(FOX) == path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{nosuch}", "unknown field {nosuch}: use {image}, {index}, {copy}, {id}, {slug}, {prompt}, {seed}"),
        ("{}", "unknown field {}"),
        ("{id.real}", "unknown field {id.real}"),
        ("{id[0]}", "unknown field"),
        ("{id!r}", "unknown field {id!r}"),
        ("{index:{copy}}", "unknown field"),
        ("{index:99999}", "unknown field {index:99999}"),
        ("{index", "is not a template"),
        ("{slug:05d}", "is not a template"),
        ("", "is not a name"),
    ],
)
def test_a_wrong_template_is_refused(name: str, said: str) -> None:
    with pytest.raises(CotrunkError) as refused:
        Output(name=name)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "prompts", "said"),
    [
        ("{slug}{copy}", ("a fox", "a fox!"), "prompts 0 and 1 the same name 'a-fox0.png': add {index}"),
        ("{index}", ("a fox",), "images of prompt 0 the same name '0.png': add {copy}"),
        ("{seed}", ("a fox",), "a group may share one seed"),
        ("{id}_{copy}", ("a fox",), "needs ids, and prompt 0 has none"),
        ("../{image}", ("a fox",), "leaves the folder of the run ('../0.png')"),
        ("a/../../{image}", ("a fox",), "leaves the folder"),
        ("/tmp/{image}", ("a fox",), "leaves the folder"),
        ("~/{image}", ("a fox",), "leaves the folder"),
        ("C:{image}", ("a fox",), "leaves the folder"),
        ("a\\{image}", ("a fox",), "leaves the folder"),
        ("a//{image}", ("a fox",), "a part is empty"),
        (".{image}", ("a fox",), "begins with a point"),
        ("x/{prompt}/{image}", (" ",), "a part is empty"),
        ("a\n{image}", ("a fox",), r"contains '\n'"),
        ("{prompt}_{copy}", ("a fox", "a fox/owl"), "prompt 1 ('a fox/owl') cannot be part of a file name"),
        ("{prompt}_{copy}", ("fox " * 60,), f"more than {LONGEST_NAME} bytes"),
        ("/".join(["{slug:060}"] * 20) + "{copy}", ("a fox",), "leaves the folder|more than"),
    ],
)
def test_wrong_names_are_refused(name: str, prompts: tuple[str, ...], said: str) -> None:
    job = Job(prompts, images_per_prompt=2, output=Output(name=name))
    with pytest.raises(CotrunkError) as refused:
        job.check_files()
    assert any(part in str(refused.value) for part in said.split("|"))
    assert str(refused.value).endswith(".")


def test_names_that_differ_are_accepted() -> None:
    for name in ("{image:05}", "{index}_{copy}", "{slug}/{copy}", "{prompt} {seed} {copy}"):
        Job(("a fox", "an owl"), images_per_prompt=2, output=Output(name=name)).check_files()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    from cotrunk.files import write_text

    write_text(tmp_path / ("x" * LONGEST_NAME), "")


@given(st.text())
def test_a_slug_is_always_a_usable_name(prompt: str) -> None:
    found = slug(prompt)
    assert 0 < len(found) <= 60
    assert all(character.isalnum() or character == "-" for character in found)


def test_no_derived_seed_is_longer_than_assumed() -> None:
    assert 10 * ANY_SEED > 2**48


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "gif"}, "png"),
        ({"quality": 90}, "no effect on PNG"),
        ({"format": "jpeg", "quality": 101}, "from 1 to 100"),
        ({"metadata": "all"}, "recipe"),
        ({"records": "x"}, "not a list"),
        ({"nosuch": 1}, "unknown key 'nosuch'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(CotrunkError, match=said):
        Output.from_json(values)


def test_output_as_json() -> None:
    job = Job(("a fox",), output=Output("webp", 80, "{index}", "parameters", ("{}",)))
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


RECORDS = [
    {"tag": "colors", "include": [{"class": "fox", "count": 1}], "prompt": "a red fox"},
    {"tag": "x", "prompt": "b"},
]


def geneval(tmp_path: Path, *records: object) -> str:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


def test_geneval_takes_names_and_records_from_its_file(tmp_path: Path) -> None:
    found = laid_out(Output(), "geneval", ["a red fox", "b"], geneval(tmp_path, *RECORDS))
    assert found.path(FOX) == "00003/samples/00001.png"
    assert [json.loads(record) for record in found.records] == RECORDS


def test_geneval_refuses_what_its_evaluation_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file, untagged = geneval(tmp_path, *RECORDS), geneval(tmp_path / "other", {"prompt": "a red fox"})
    for output, prompts, source, said in (
        (Output("webp"), ["a red fox", "b"], file, "PNG files only"),
        (Output(), ["a red fox"], None, "needs --prompts FILE.jsonl"),
        (Output(), ["a red fox"], "prompts.txt", "needs --prompts FILE.jsonl"),
        (Output(), ["a red fox"], untagged, "line 1: GenEval needs the keys"),
        (Output(), ["another fox", "b"], file, "each prompt as it is in"),
    ):
        with pytest.raises(CotrunkError, match=said):
            laid_out(output, "geneval", prompts, source)


def test_t2i_compbench_has_the_prompt_in_the_name() -> None:
    found = laid_out(Output("jpeg"), "t2i-compbench", ["a fox"], None)
    assert found.path(ImageFacts(12, 3, 0, "a green bench")) == "samples/a green bench_000012.jpg"
    with pytest.raises(CotrunkError, match="cuts the prompt off"):
        laid_out(Output(), "t2i-compbench", ["a_fox"], None)
