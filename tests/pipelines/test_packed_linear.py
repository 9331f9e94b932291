"""Linear layers with packed weights: the same results but for rounding, and nothing is left behind."""

import pytest
import torch

from cotrunk.pipelines.packed_linear import packed_linears


class Doubled(torch.nn.Linear):
    """A layer of another class, as LoRAs make them."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.GELU(), Doubled(16, 8), torch.nn.Linear(8, 4, bias=False)
    )


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8)])
def test_results_differ_by_rounding_alone(shape: tuple[int, ...]) -> None:
    layers, inputs = model(), torch.randn(*shape)
    with torch.no_grad():
        before = layers(inputs)
        with packed_linears(layers):
            is_packed = ["forward" in vars(layer) for layer in layers]
            torch.testing.assert_close(layers(inputs), before, rtol=0, atol=1e-6)
        assert is_packed == [True, False, False, True]
        assert torch.equal(layers(inputs), before)
    assert not any("forward" in vars(layer) for layer in layers)


def test_an_error_restores_the_layers() -> None:
    layers = model()
    with torch.no_grad(), pytest.raises(KeyError), packed_linears(layers):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layers)


def test_layers_that_cannot_be_packed_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_packed(layers: torch.nn.Module) -> bool:
        with packed_linears(layers):
            return any("forward" in vars(layer) for layer in layers.modules())

    assert not is_packed(model())  # gradients
    with torch.no_grad():
        assert is_packed(model())
        assert not is_packed(model().bfloat16())
        assert not is_packed(model().to("meta"))
        hooked = model()
        for layer in hooked:
            layer.register_forward_hook(lambda *_: None)
        assert not is_packed(hooked)
        monkeypatch.setattr("cotrunk.pipelines.packed_linear.LARGEST", 10)
        assert not is_packed(model())
