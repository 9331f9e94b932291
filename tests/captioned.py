"""Folders of captioned images for the tests of `dataset`, in each form that it reads."""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ["a red apple", "a green apple", "a yellow apple", "a grey owl", "a brown owl", "a violin"]


def write_image(path: Path) -> Path:
    """Write a different image for each file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def folder_of(path: Path, form: str, captions: list[str] = CAPTIONS) -> Path:
    """Write a folder with images and their captions in this form."""
    entries = [{"file_name": f"images/{i}.png", "text": caption} for i, caption in enumerate(captions)]
    for entry in entries:
        write_image(path / entry["file_name"])
    if form == "jsonl":
        (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    else:
        lines = ["file_name,text", *(f'{entry["file_name"]},"{entry["text"]}"' for entry in entries)]
        (path / "metadata.csv").write_text("\n".join(lines) + "\n")
    return path


def coco(path: Path, captions: list[str] = CAPTIONS) -> Path:
    """Write COCO annotations with two captions per image, of which the first counts."""
    images = [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(len(captions))]
    annotations = [
        {"id": number * 100 + i, "image_id": 10 + i, "caption": caption}
        for number, texts in ((2, ["not this one"] * len(captions)), (1, captions))
        for i, caption in enumerate(texts)
    ]
    for image in images:
        write_image(path / "train" / image["file_name"])
    file = path / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file
