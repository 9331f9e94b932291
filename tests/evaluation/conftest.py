"""The LoRA that the tests of evaluation compare with the bare model."""

from pathlib import Path

import pytest
import torch
from tiny import sd_with_text


@pytest.fixture(scope="module")
def trained_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a LoRA with random weights, as `cotrunk train` would."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder, pipe = tmp_path_factory.mktemp("lora"), sd_with_text().pipe
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    type(pipe).save_lora_weights(save_directory=folder, unet_lora_layers=layers)
    return folder
