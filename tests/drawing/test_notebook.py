"""What a notebook shows: the saving, the images and the trees of a result, and one progress bar for a whole run."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pages import Parsed
from PIL import Image
from tiny import sd_with_text

from cotrunk import Batching, Cost, Plan, Result, Sharing, generate
from cotrunk.drawing import notebook
from cotrunk.planning.tree import flat_tree

PROMPTS = ("a red apple", "a <b>green</b> apple & more", "a violin")


class Output(dict):  # as the outputs of diffusers: a dictionary with attributes
    pass


def result(output: dict[str, Any], made: tuple[int, ...] = (0, 1, 2), **changed: Any) -> Result:
    trees = (*flat_tree((0, 1), 3, 10, 0.71), *flat_tree((2,), 0, 10))
    plan = Plan(PROMPTS, (7, 7, 9), trees, 10, 10, sharing=Sharing())
    facts: dict[str, Any] = {"failed": (), "flagged": (), "seconds": {"total": 3.21}}
    spared = {"sharing": 6, "guidance": 0, "skipping": 14}
    return Result(Output(output), plan, Cost(40, 60), spared, made, **(facts | changed))


def images(count: int = 3, size: tuple[int, int] = (8, 8)) -> list[Image.Image]:
    return [Image.new("RGB", size, (index, 90, 160)) for index in range(count)]


def parsed(html: str) -> Parsed:
    """Parse HTML and check what must hold for everything that a notebook shows."""
    found = Parsed(html)
    assert not found.wrong
    assert not found.open
    assert not found.all("script")
    assert all(image["src"].startswith("data:image/") for image in found.all("img"))
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on") or name == "href"]
    return found


def test_a_result_shows_its_saving_and_each_image_with_its_prompt() -> None:
    found = parsed(result({"images": images()})._repr_html_())
    assert "3 images for 40 denoiser rows instead of 60: saved 33.3 % (3.21 s)." in found.text
    assert "Rows saved: 6 by sharing and 14 by skipping." in found.text
    assert [image["title"] for image in found.all("img")] == [
        f"image {index}, seed {seed}" for index, seed in enumerate((7, 7, 9))
    ]
    assert "a <b>green</b> apple & more" in found.text  # as text: escaped
    assert not found.all("b", "x")


def test_failed_flagged_and_missing_images_say_so() -> None:
    found = parsed(result({"images": images()}, failed=(0,), flagged=(2,))._repr_html_())
    assert [image["alt"] for image in found.all("img")] == ["image 1"]
    assert "failed" in found.text
    assert "flagged" in found.text


def test_an_interrupted_run_shows_the_images_that_it_made() -> None:
    of = result({"images": images(2)}, made=(1, 2))
    assert [image["alt"] for image in parsed(of._repr_html_()).all("img")] == ["image 1", "image 2"]
    drawn = parsed(of.trees()._repr_html_())
    assert [image["alt"] for image in drawn.all("img")] == ["image 1"]
    assert "not made" in drawn.text


@pytest.mark.parametrize(
    "output", [{"audios": np.zeros((3, 8))}, {"frames": [[], [], []]}, {"images": np.zeros((3, 8))}]
)
def test_an_output_without_images_shows_the_prompts(output: dict[str, Any]) -> None:
    found = parsed(result(output)._repr_html_())
    assert not found.all("img")
    assert f"no images to show here, but .{next(iter(output))}" in found.text
    assert all(prompt in found.text for prompt in PROMPTS)
    assert len(parsed(result(output).trees()._repr_html_()).all("svg")) == 1


def test_trees_are_drawn_with_their_images_and_branch_steps() -> None:
    drawing = result({"images": images()}).trees()
    assert repr(drawing) == "<Drawing: 1 group, 1 image alone; a notebook shows it>"
    found = parsed(drawing._repr_html_())
    assert [image["alt"] for image in found.all("img")] == ["image 0", "image 1"]
    assert "2 images, similarity 0.71 or more, branching at 3 of 10: 15 % of its rows saved." in found.text
    assert found.all("span", "fork")


def test_trees_without_groups_say_that_nothing_is_shared() -> None:
    alone = result({"images": images()})
    plan = alone.plan.independent()
    assert "Nothing is shared." in parsed(notebook.trees_drawing(plan, {}, {}).html).text


def test_large_results_are_cut_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("IMAGES", 2), ("GROUP_IMAGES", 1), ("GROUPS", 0)):
        monkeypatch.setattr(notebook, name, value)
    of = result({"images": images()})
    found = parsed(of._repr_html_())
    assert len(found.all("img")) == 2
    assert "The first 2 of 3 are shown." in found.text
    assert "The 0 groups with the largest saving are drawn." in parsed(of.trees().html).text
    monkeypatch.setattr(notebook, "GROUPS", 1)
    assert "1 of its images are drawn." in parsed(of.trees().html).text


def test_large_images_become_thumbnails() -> None:
    found = parsed(result({"images": images(size=(1024, 512))})._repr_html_())
    assert [(image["width"], image["height"]) for image in found.all("img")] == [("128", "64")] * 3


class Bar:
    """What a pipeline's `progress_bar` returns."""

    def __init__(self, total: int) -> None:
        self.total, self.n, self.said, self.unit = total, 0, "", ""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, rows: int = 1) -> None:
        assert rows >= 0
        self.n += rows

    def set_postfix_str(self, said: str, refresh: bool) -> None:
        self.said = said


def test_a_run_of_several_batches_has_one_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, bars, own = sd_with_text().pipe, list[Bar](), list[bool]()
    pipe.set_progress_bar_config(leave=False)

    def progress_bar(iterable: Any = None, total: int | None = None) -> Any:
        if bars:  # the pipeline's own, during a call
            own.append(pipe._progress_bar_config["disable"])
        bars.append(Bar(total or 0))
        return bars[-1]

    seen = []
    monkeypatch.setattr(pipe, "progress_bar", progress_bar)
    made = generate(
        pipe,
        list(PROMPTS),
        sharing=None,
        num_inference_steps=3,
        batching=Batching(batch_size=1),
        output_type="latent",
        on_step=lambda event: seen.append(bars[0].n),
    )
    monkeypatch.undo()
    assert own == [True] * 3
    assert bars[0].total == bars[0].n == made.cost.used
    assert seen == sorted({*seen})  # the rows rise with every step of every batch
    assert bars[0].said == "3 of 3 images"
    assert pipe._progress_bar_config == {"leave": False}
    assert "progress_bar" not in vars(pipe)


def test_a_pipeline_without_a_progress_bar_has_none() -> None:
    from cotrunk.engine.progress import run_bar

    with run_bar(SimpleNamespace(), 4, 1) as bar:
        assert bar.also(None) is None
        bar.batch(4, 1)
