"""What image files say about themselves, in each format, as other programs read it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import ARM, FACTS, JOB, PLAN, batch
from sd_parsers import ParserManager

from cotrunk.errors import CotrunkError
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.images import LONGEST_RECIPE
from cotrunk.runs.metadata import encoded, parameters_text, read_recipe
from cotrunk.runs.output import Output
from cotrunk.runs.recipe import Recipe, batch_recipe, part_of

FORMATS = [Output("png"), Output("webp"), Output("webp", 80), Output("jpeg")]


def written(folder: RunFolder, output: Output) -> Path:
    """Write the images of the batch (0 1) with a negative prompt, and return the file of image 1."""
    job = replace(JOB, negative_prompt="blürred, ugly", model="some/model: big", lora="/x/style:0.5", output=output)
    arm = replace(ARM, output=output)
    folder.write_batch(arm, batch(0, 1), job, FACTS)
    return folder.path / arm.file(1)


@pytest.mark.parametrize("output", FORMATS, ids=lambda output: f"{output.format}-{output.quality}")
def test_a_reader_of_web_ui_metadata_understands_each_format(folder: RunFolder, output: Output) -> None:
    found = ParserManager().parse(written(folder, output))
    assert found is not None
    assert found.full_prompt == "a green apple"
    assert found.full_negative_prompt == "blürred, ugly"
    (sampler,) = found.samplers
    assert sampler.name == "DDIM"
    assert sampler.parameters == {"steps": "3", "cfg_scale": f"{JOB.guidance_scale:g}", "seed": "7"}
    assert found.metadata["Size"] == "8x8"
    assert found.metadata["Lora"] == "style (0.5)"
    assert found.metadata["Version"].startswith("cotrunk")


@pytest.mark.parametrize("output", FORMATS, ids=lambda output: f"{output.format}-{output.quality}")
def test_the_recipe_survives_in_each_format(folder: RunFolder, output: Output) -> None:
    path = written(folder, output)
    recipe = Recipe.from_json(read_recipe(path), path)
    assert (recipe.image, recipe.number) == (1, 1)
    assert recipe.plan == part_of(PLAN, (0, 1))
    assert recipe.plan.prompts == tuple(recipe.job.texts) == ("a [red] äpple", "a green apple")
    assert recipe.pipeline == FACTS
    assert (recipe.job.negative_prompt, *map(str, recipe.job.lora)) == ("blürred, ugly", "/x/style:0.5")
    assert set(recipe.versions) == {"cotrunk", "diffusers", "torch"}


def test_lossless_formats_keep_every_bit() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 4), dtype=np.uint8)
    noise[:3, :, 3] = 0  # transparent pixels keep their colours
    for mode, output in (("RGB", Output("png")), ("RGB", Output("webp")), ("RGBA", Output("webp"))):
        image = Image.fromarray(noise[..., : len(mode)])
        found = Image.open(io.BytesIO(encoded(image, output, "", "", {})))
        assert np.array_equal(np.asarray(found.convert(mode)), np.asarray(image))
        assert output.is_lossless
    assert not Output("webp", 80).is_lossless
    assert not Output("jpeg").is_lossless


def test_quality_changes_the_size_of_a_file() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("webp", "jpeg"):
        sizes = [len(encoded(noise, Output(kind, quality), "", "", {})) for quality in (20, None)]
        assert sizes[0] < sizes[1], kind


def test_a_format_that_cannot_hold_an_image_is_reported() -> None:
    with pytest.raises(CotrunkError, match=r"8x8 in mode RGBA cannot be written as jpeg .*: use the format png"):
        encoded(Image.new("RGBA", (8, 8)), Output("jpeg"), "", "", {})


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_metadata_can_be_left_out(folder: RunFolder, kind: str) -> None:
    path = written(folder, Output(kind, metadata="none"))
    assert b"green" not in path.read_bytes()
    assert ParserManager().parse(path) is None
    path = written(folder, Output(kind, metadata="parameters"))
    assert ParserManager().parse(path) is not None
    content = path.read_bytes()
    assert "äpple".encode() not in content  # the prompt of another image
    assert "äpple".encode("utf-16-be") not in content
    with pytest.raises(CotrunkError, match="holds no recipe of cotrunk"):
        read_recipe(path)


def test_values_with_commas_and_colons_are_quoted() -> None:
    text = parameters_text("a fox", None, {"Steps": 3, "Model": 'a, "b": c', "Lora": None})
    assert text == 'a fox\nSteps: 3, Model: "a, \\"b\\": c"'


def test_a_recipe_that_is_too_long_for_a_file_is_left_out(folder: RunFolder) -> None:
    long = replace(PLAN, prompts=("x" * 70_000, "a green apple", "a tiger"))
    for output, fits in ((Output("jpeg"), False), (Output("webp"), True)):
        arm = replace(ARM, plan=long, output=output)
        folder.write_batch(arm, batch(0, 1), replace(JOB, prompts=long.prompts), FACTS)
        path = folder.path / arm.file(1)
        assert ParserManager().parse(path) is not None
        if fits:
            read_recipe(path)
        else:
            with pytest.raises(CotrunkError, match="no recipe"):
                read_recipe(path)
    longer = replace(PLAN, prompts=("x" * LONGEST_RECIPE, "a green apple", "a tiger"))
    arm = replace(ARM, plan=longer)
    folder.write_batch(arm, batch(0, 1), replace(JOB, prompts=longer.prompts), FACTS)
    with pytest.raises(CotrunkError, match="no recipe"):
        read_recipe(folder.path / arm.file(1))


DAMAGES = {
    "another version": lambda data: {**data, "format": 99},
    "a list": lambda data: [data],
    "a missing key": lambda data: {name: value for name, value in data.items() if name != "plan"},
    "an unknown key of the job": lambda data: {**data, "job": {**data["job"], "nosuch": 1}},
    "an image beyond the plan": lambda data: {**data, "image": 2},
    "other prompts": lambda data: {**data, "job": {**data["job"], "prompts": ["a dog", "a cat"]}},
    "trees that miss an image": lambda data: {**data, "plan": {**data["plan"], "trees": []}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_recipe_is_one_sentence(folder: RunFolder, damage: str) -> None:
    data = read_recipe(written(folder, Output()))
    Recipe.from_json(data, "a.png")
    with pytest.raises(CotrunkError, match=r"^The recipe in a\.png is not usable \(.*\): name the folder of its run"):
        Recipe.from_json(DAMAGES[damage](json.loads(json.dumps(data))), "a.png")


def test_files_without_a_recipe_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("not an image")
    for name, said in (("plain.png", "no recipe"), ("text.png", "not a readable PNG"), ("none.png", "no file")):
        with pytest.raises(CotrunkError, match=said):
            read_recipe(tmp_path / name)


def test_records_are_written_above_the_images(folder: RunFolder) -> None:
    output = Output(name="{index:05}/samples/{copy:05}", records=('{"tag": "a"}', '{"tag": "b"}', '{"tag": "c"}'))
    folder.write_batch(replace(ARM, output=output), batch(0, 1), JOB, FACTS)
    assert (folder.path / "images/00001/metadata.jsonl").read_text() == '{"tag": "b"}\n'
    assert (folder.path / "images/00001/samples/00000.png").exists()
    assert not (folder.path / "images/00002").exists()


def test_the_recipes_of_a_batch_have_one_text_in_common() -> None:
    first = batch_recipe(JOB, FACTS, PLAN, (0, 1, 2))
    for place, number in ((0, 40), (2, 17)):
        text = first.text_of(place, number)
        assert text == first.of(place, number).to_text()
        assert Recipe.from_json(json.loads(text), "x") == first.of(place, number)
