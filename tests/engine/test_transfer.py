"""How often a run waits for the device."""

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import cotrunk
from cotrunk import Batching, Sharing, Skipping, generate
from cotrunk.engine.transfer import read, sent

SOURCE = str(Path(cotrunk.__file__).parent)
READS = ("tolist", "item", "__bool__", "__float__", "__int__")


def test_values_go_to_the_device_and_come_back() -> None:
    assert sent([[1, 2], [3, 4]], torch.device("cpu")).tolist() == [[1, 2], [3, 4]]
    assert read([torch.tensor(True), torch.tensor(False)]) == [True, False]
    assert read([]) == []


@pytest.mark.parametrize("noise", ["common", "own"])
def test_waits_for_the_device_do_not_grow_with_the_images(noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value that Python reads makes it wait until the device has finished all its work."""
    waits, counts = 0, dict[int, list[int]]()

    def counted(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def wrapped(self: torch.Tensor, *args: Any) -> Any:
            nonlocal waits
            waits += sys._getframe(1).f_code.co_filename.startswith(SOURCE)
            return original(self, *args)

        return wrapped

    def on_step(event: Any) -> None:
        nonlocal waits
        counts[len(event.sources)].append(waits)
        waits = 0

    made = tiny.sd()
    sharing = Sharing(share=0.3, similarity=-1.0, noise=noise, trunk_guidance=1.0)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    for images in (2, 6):
        counts[images] = []
        generate(
            made.pipe,
            **made.inputs(images),
            sharing=sharing,
            skipping=Skipping(tolerance=0.3),
            num_inference_steps=10,
            batching=Batching(6),
            output_type="latent",
            on_step=on_step,
        )
    assert len(counts[2]) == len(counts[6]) == 10
    assert max(counts[6][1:-1]) <= max(counts[2][1:-1]) <= 3
