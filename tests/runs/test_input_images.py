"""Input images: found in folders, checked before loading, read upright and scaled when they are needed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from cotrunk import CotrunkError
from cotrunk.runs import input_images
from cotrunk.runs.input_images import LazyImages, digests_of, load_image, match_folder, size_of
from cotrunk.runs.job import Job
from cotrunk.runs.row_inputs import checked_inputs, inputs_of


def save(path: Path, value: int = 0, size: tuple[int, int] = (6, 4), **options: object) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, **options)
    return str(path)


# Folders.


@given(count=st.integers(1, 120), start=st.integers(0, 99))
def test_without_ids_numbers_in_names_count_as_numbers(count: int, start: int) -> None:
    names = [f"view-{number}.png" for number in range(start, start + count)]
    assert sorted(sorted(names), key=input_images._natural) == names


def test_without_ids_images_belong_to_prompts_in_their_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.jpg", "a.webp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".hidden.png")
    found, unused = match_folder(tmp_path, [None] * 3, "--image")
    assert [path.name for path in found] == ["2.jpg", "10.png", "a.webp"]
    assert unused == []
    with pytest.raises(
        CotrunkError, match=r"--image .* holds 3 images for 2 prompts: give one per prompt, in the order"
    ):
        match_folder(tmp_path, [None] * 2, "--image")


def test_ids_name_images(tmp_path: Path) -> None:
    for name in ("fox.png", "owl.JPG", "extra.png"):
        save(tmp_path / name)
    found, unused = match_folder(tmp_path, ["owl", "fox"], "--mask-image")
    assert [path.name for path in found] == ["owl.JPG", "fox.png"]
    assert unused == ["extra.png"]
    with pytest.raises(CotrunkError, match=r"--mask-image .* has no image hen.png .* for prompt 1 \(id hen\)"):
        match_folder(tmp_path, ["owl", "hen"], "--mask-image")
    save(tmp_path / "owl.png")
    with pytest.raises(CotrunkError, match=r"holds owl.JPG and owl.png for prompt 0 \(id owl\): it needs one"):
        match_folder(tmp_path, ["owl", "fox"], "--mask-image")


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match="holds no image: name a folder with one image per prompt"):
        match_folder(tmp_path, [None], "--image")


# Files.


def test_damaged_and_missing_images_are_named(tmp_path: Path) -> None:
    whole = Path(save(tmp_path / "whole.png", size=(200, 200))).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    (tmp_path / "text.png").write_text("no image")
    for name, why in (
        ("cut", "not a readable image"),
        ("text", "not a readable image"),
        ("none", "there is no such file"),
    ):
        with pytest.raises(CotrunkError, match=rf"The input image .*{name}\.png of prompt 7 cannot be used: .*{why}"):
            digests_of([("prompt 7", str(tmp_path / f"{name}.png"))])


def test_digests_tell_files_apart(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{name}.png", value) for name, value in (("a", 1), ("b", 1), ("c", 2))]
    digests = digests_of([("x", path) for path in [*paths, *paths]])
    assert list(digests) == paths
    assert digests[paths[0]] == digests[paths[1]] != digests[paths[2]]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_are_upright(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = str(tmp_path / f"{orientation}.png")
    image.save(path, exif=exif)
    made = load_image(path, None, False)
    assert made.size == size_of(path) == ((4, 6) if orientation in (6, 8) else (6, 4))
    corner = {1: (0, 0), 3: (5, 3), 6: (3, 0), 8: (0, 5)}[orientation]
    assert made.getpixel(corner) == (255, 255, 255)


def test_images_are_scaled_and_masks_stay_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.uint8([[0, 255]]), (4, 3))).save(tmp_path / "stripes.png")
    path = str(tmp_path / "stripes.png")
    assert load_image(path, (16, 8), False).size == (16, 8)
    assert load_image(path, (16, 8), False).mode == "RGB"
    mask = load_image(path, (15, 9), True)
    assert mask.mode == "L"
    assert {value for _, value in mask.getcolors() or ()} == {0, 255}


def test_images_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, read = [save(tmp_path / f"{i}.png", i) for i in range(3)], list[str]()
    monkeypatch.setattr(input_images, "load_image", lambda path, *_: read.append(path) or path)
    files = LazyImages(paths, None, is_mask=False)
    assert read == []
    assert (files[1], files[0:2][1], list(files)) == (paths[1], paths[1], paths)
    assert read == [paths[1], paths[1], *paths]
    assert len(files) == 3


# Jobs.


def test_rows_come_before_the_run(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one.png", 1), save(tmp_path / "other.png", 2)
    job = Job(["a", {"prompt": "b", "image": other, "strength": 0.2}], image=one, strength=0.5)  # type: ignore[arg-type]
    first, second = (inputs_of(job, row) for row in job.prompts)
    assert (first.image, first.strength, second.image, second.strength) == (one, 0.5, other, 0.2)
    assert set(checked_inputs(job).digests) == {one, other}
    assert first.size == (16, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask_image": "a.png"}, r"prompt 0 has a mask image \(a.png\) and no image: give --image too"),
        ({"strength": 0.5}, r"prompt 0 has a strength \(0.5\) and no image: give --image too"),
        ({"controlnet": "net"}, "prompt 0 has 0 control images for 1 ControlNet: give --control-image once per"),
        ({"controlnet": ["a", "b"], "control_image": "a.png"}, "prompt 0 has 1 control image for 2 ControlNets"),
        ({"image": "none.png"}, "The input image none.png of prompt 0 cannot be used: there is no such file"),
        (
            {"image": "a.png", "digests": {"a.png": "0"}},
            "a.png is another one than before: bring back the earlier file",
        ),
    ],
)
def test_jobs_whose_images_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.png"))
    with pytest.raises(CotrunkError, match=message):
        checked_inputs(Job(("a cat",), **given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": ""}, "image '' is not a name"),
        ({"controlnet": 3}, "controlnet 3 is not a list"),
        ({"control_image": [3]}, "control_image 3 is not a name"),
        ({"strength": 1.5}, "strength 1.5 is out of range"),
        ({"digests": ["a"]}, "digests is not an object"),
    ],
)
def test_jobs_with_values_of_another_type(given: dict[str, object], message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        Job(("a cat",), **given)  # type: ignore[arg-type]


def test_inputs_survive_json(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    job = checked_inputs(Job(("a cat",), image=path, control_image=(path,), strength=0.25))
    assert Job.from_json(job.to_json()) == job
