"""Input images on the command line: image to image on `mini`, inpainting and ControlNets on a tiny model."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building_blocks import controlnet
from command import ROUNDING, assert_refused, cotrunk, no_model, pipeline, pixels, read
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from tiny import sd_with_text

from cotrunk.pipelines.image_inputs import ImageInputs, pipeline_for

QUICK = ("--steps", 4, "--guidance", 3, "--similarity", "-1", "--share", 0.5)


def save(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny `model`, a ControlNet `net`, and two LoRAs."""
    folder, pipe = tmp_path_factory.mktemp("tiny"), sd_with_text().pipe
    pipe.save_pretrained(folder / "model")
    controlnet(attention_head_dim=4).save_pretrained(folder / "net")
    for name in ("style", "detail"):
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), name)
        weights = get_peft_model_state_dict(pipe.unet, adapter_name=name)
        pipe.save_lora_weights(folder / name, unet_lora_layers={key: 9 * weight for key, weight in weights.items()})
        pipe.unet.unload_lora()
    return folder


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with images."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one.png", "two.png", "photos/fox.png", "photos/owl.png")):
        save(tmp_path / name, seed)
    return tmp_path


def table(path: Path, *rows: dict[str, object]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def images_of(run: Path) -> list[np.ndarray]:
    return [pixels(run / image["file"]) for image in read(run)["images"]]


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= ROUNDING


# Image to image.


@pytest.mark.usefixtures("model")
def test_an_image_for_all_prompts(images: Path) -> None:
    words = ("generate", "a red apple", "a green apple", *QUICK, "--seed", 5)
    made = cotrunk(*words, "--image", "one.png", "--strength", 0.5, "--out", "run")
    assert made.code == 0, made.err
    report = read(images / "run")
    assert report["timesteps"] == 2  # half of the steps
    assert report["rows"]["spared"]["sharing"] > 0
    job = report["job"]
    assert (job["image"], job["strength"], list(job["digests"])) == (str(images / "one.png"), 0.5, [job["image"]])
    other = cotrunk(*words, "--image", "two.png", "--strength", 0.5, "--out", "other")
    assert other.code == 0, other.err
    for one, two in zip(images_of(images / "run"), images_of(images / "other"), strict=True):
        assert not close(one, two)


@pytest.mark.usefixtures("model")
def test_images_are_those_of_diffusers(images: Path) -> None:
    import torch

    made = cotrunk(
        *("generate", "a red apple", "a violin", "--image", "photos", "--strength", 0.5, "--steps", 4),
        *("--guidance", 3, "--share", 0, "--seed", 5, "--out", "run"),
    )
    assert made.code == 0, made.err
    pipe = pipeline_for(pipeline(), ImageInputs(image=True))
    for i, (prompt, name) in enumerate((("a red apple", "fox"), ("a violin", "owl"))):
        own = pipe(
            prompt,
            image=Image.open(f"photos/{name}.png"),
            strength=0.5,
            num_inference_steps=4,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(read(images / "run")["images"][i]["seed"]),
        ).images[0]
        assert close(images_of(images / "run")[i], np.asarray(own))


@pytest.mark.usefixtures("model")
def test_columns_come_before_options_and_rows_without_images_start_from_noise(images: Path) -> None:
    rows = [
        {"id": "a", "prompt": "a red apple", "image": "one.png", "strength": 0.5},
        {"id": "b", "prompt": "a green apple", "image": "one.png", "strength": 0.5},
        {"id": "c", "prompt": "a red apple", "image": "two.png", "strength": 0.5},
        {"id": "d", "prompt": "a red apple", "image": "", "strength": ""},
    ]
    made = cotrunk("generate", "--prompts", table(images / "p.csv", *rows), *QUICK, "--out", "run")
    assert made.code == 0, made.err
    report = read(images / "run")
    # prompts with one image share; those with another image, and those without one, do not
    assert [tuple(group["images"]) for group in report["groups"]] == [(0, 1), (2,), (3,)]
    assert [len(image["steps"]) for image in report["images"]] == [2, 2, 2, 4]
    page = (images / "run" / "index.html").read_text(encoding="utf-8")
    assert "The prompts differ in size, steps, guidance, input images or LoRAs, so they ran in 2 parts" in page
    assert "appended" not in page
    redone = cotrunk("redo", "run", "--images", "0,2", "--out", "again")
    assert redone.code == 0, redone.err
    assert "identical to the original" in redone.out or "identical to the originals" in redone.out


@pytest.mark.usefixtures("model")
def test_images_have_the_size_that_is_asked_for_or_that_of_their_input(images: Path) -> None:
    save(images / "wide.png", 7, (133, 70))
    rows = [{"prompt": "a red apple", "image": name} for name in ("wide.png", "one.png")]
    made = cotrunk("generate", "--prompts", table(images / "p.csv", *rows), *QUICK, "--out", "own")
    assert made.code == 0, made.err
    assert [image.shape[:2] for image in images_of(images / "own")] == [(64, 128), (64, 64)]
    sizes = ("--width", 64, "--height", 128)
    made = cotrunk("generate", "--prompts", images / "p.csv", *QUICK, *sizes, "--out", "asked")
    assert made.code == 0, made.err
    assert [image.shape[:2] for image in images_of(images / "asked")] == [(128, 64), (128, 64)]


@pytest.mark.usefixtures("model")
def test_a_folder_belongs_to_ids(images: Path) -> None:
    rows = [{"id": "owl", "prompt": "an owl"}, {"id": "fox", "prompt": "a fox"}]
    save(images / "photos" / "extra.png", 9)
    words = ("--prompts", table(images / "p.csv", *rows), "--image", "photos", "--strength", 0.5)
    made = cotrunk("generate", *words, *QUICK, "--out", "run")
    assert made.code == 0, made.err
    assert "1 image in photos belongs to no prompt: extra.png" in made.err
    job = read(images / "run")["job"]
    assert [Path(row["image"]).name for row in job["prompts"]] == ["owl.png", "fox.png"]
    planned = cotrunk("plan", *words, "--steps", 4, "--guidance", 3)
    assert planned.code == 0, planned.err
    assert "8 denoiser rows" in planned.out  # two prompts, half of four steps, with guidance


@pytest.mark.usefixtures("model")
def test_a_changed_image_stops_a_resumed_run(images: Path) -> None:
    words = ("generate", "a red apple", *QUICK, "--image", "one.png", "--out", "run")
    assert cotrunk(*words).code == 0
    save(images / "one.png", 99)
    assert_refused(cotrunk(*words, "--resume"), "was started with another input image")
    assert_refused(cotrunk("redo", "run", "--images", "0", "--out", "again"), "one.png is another one than before")


# Inpainting and ControlNets.


def test_inpainting_keeps_what_the_mask_hides(tiny: Path, images: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save("mask.png")
    words = ("generate", "a cat", "a dog", *QUICK, "--model", tiny / "model", "--image", "one.png")
    made = cotrunk(*words, "--mask-image", "mask.png", "--out", "run")
    assert made.code == 0, made.err
    assert cotrunk(*words, "--mask-image", "mask.png", "--seed", 9, "--out", "other").code == 0
    one, other = images_of(images / "run")[0], images_of(images / "other")[0]
    assert one.shape == (64, 64, 3)
    difference = np.abs(one.astype(int) - other).mean(axis=(0, 2))
    assert difference[48:].mean() > 4 * difference[:16].mean()  # the decoder blurs the border


def test_a_controlnet(tiny: Path, images: Path) -> None:
    words = ("generate", "a cat", "a dog", *QUICK, "--model", tiny / "model", "--controlnet", tiny / "net")
    runs = {"one": ("one.png",), "two": ("two.png",), "each": ("photos",)}
    for name, (file,) in runs.items():
        made = cotrunk(*words, "--control-image", file, "--out", name)
        assert made.code == 0, made.err
    assert read(images / "one")["rows"]["spared"]["sharing"] > 0
    assert read(images / "each")["rows"]["spared"]["sharing"] == 0  # other control images never share
    one, two = (images_of(images / name)[0] for name in ("one", "two"))
    assert (one != two).any()
    assert one.shape == (64, 64, 3)
    both = cotrunk(
        *(*words, "--controlnet", tiny / "net", "--control-image", "one.png", "--control-image", "two.png"),
        *("--image", "one.png", "--out", "both"),
    )
    assert both.code == 0, both.err
    assert read(images / "both")["job"]["control_image"] == [str(images / name) for name in ("one.png", "two.png")]


def test_each_prompt_has_its_lora(tiny: Path, images: Path) -> None:
    names = (f"{tiny / 'style'}:0.5", f"{tiny / 'detail'}", "")
    rows = [{"prompt": "a cat", "seed": 1, "lora": name} for name in names]
    words = (*QUICK, "--model", tiny / "model")
    made = cotrunk("generate", "--prompts", table(images / "p.csv", *rows), *words, "--out", "run")
    assert made.code == 0, made.err
    for i, name in enumerate(names):
        lora = ("--lora", name) if name else ()
        (images / "one.jsonl").write_text(json.dumps({"prompt": "a cat", "seed": 1}))
        assert cotrunk("generate", "--prompts", "one.jsonl", *words, *lora, "--out", f"alone{i}").code == 0
        assert close(images_of(images / "run")[i], images_of(images / f"alone{i}")[0])
    assert not close(images_of(images / "run")[0], images_of(images / "run")[2])
    assert not close(images_of(images / "run")[0], images_of(images / "run")[1])


# Bad input.


BAD: list[tuple[tuple[Any, ...], str]] = [
    (("--image", "none.png"), "There is no file none.png: give --image an image, or a folder"),
    (("--image", "damaged.png"), "damaged.png of prompt 0 cannot be used: it is not a readable image"),
    (("--image", "photos"), "--image photos holds 2 images for 1 prompts"),
    (("--mask-image", "one.png"), "prompt 0 has a mask image"),
    (("--strength", 0.5), "prompt 0 has a strength (0.5) and no image: give --image too"),
    (("--image", "one.png", "--strength", 1.5), "--strength 1.5 is out of range"),
    (("--control-image", "one.png"), "takes no control image: name its ControlNet with --controlnet"),
    (("--controlnet", "photos"), "prompt 0 has 0 control images for 1 ControlNet"),
    (("--controlnet", "no such net", "--control-image", "one.png"), "There is no ControlNet 'no such net'"),
    (("--control-image", "photos", "--control-image", "one.png"), "photos is a folder: with several ControlNets"),
    (("--image", "one.png", "--model", "mini-dit"), "diffusers has no image-to-image pipeline for the model of PixArt"),
    (("--image", "one.png", "--mask-image", "one.png"), "takes latents of 4 channels, and this model has 16"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_images_that_do_not_fit_are_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, images: Path, options: tuple[Any, ...], said: str
) -> None:
    no_model(monkeypatch)
    (images / "damaged.png").write_bytes((images / "one.png").read_bytes()[:-30])
    assert_refused(cotrunk("generate", "a cat", *options, "--out", "run"), said)
    assert_refused(cotrunk("plan", "a cat", *options), said)
    assert not (images / "run").exists()


def test_a_model_that_needs_an_image_says_so_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)
    pipeline_for(sd_with_text().pipe, ImageInputs(image=True)).save_pretrained(tmp_path / "model")
    outcome = cotrunk("generate", "a cat", "--model", tmp_path / "model", "--out", tmp_path / "run")
    assert_refused(outcome, "StableDiffusionImg2ImgPipeline needs an input image (image): give --image.")
    assert not (tmp_path / "run").exists()


def test_offloading_and_loras_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)
    monkeypatch.setattr("cotrunk.pipelines.loading.check_names", lambda *_: None)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a cat", "lora": str(tmp_path)}))
    words = ("generate", "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "run")
    assert_refused(cotrunk(*words, "--offload", "group"), "cannot be exchanged with --offload group")


@pytest.mark.usefixtures("model")
def test_appended_prompts_may_have_further_images(images: Path) -> None:
    rows = [{"prompt": "a red apple", "image": "one.png"}, {"prompt": "a green apple", "image": "two.png"}]
    for count in (1, 2):
        words = ("--prompts", table(images / "p.csv", *rows[:count]), *QUICK, "--out", "run")
        made = cotrunk("generate", *words, *(("--resume",) if count == 2 else ()))
        assert made.code == 0, made.err
    report = read(images / "run")
    assert [image["prompt"] for image in report["images"]] == [0, 1]
    assert set(report["job"]["digests"]) == {str(images / name) for name in ("one.png", "two.png")}
