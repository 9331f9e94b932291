"""Models on the command line: single files, LoRAs with weights, tiling, offloading, and names that do not exist."""

import json
from pathlib import Path

import pytest
import torch
from command import assert_refused, cotrunk, no_model, read
from peft import LoraConfig, get_peft_model_state_dict
from single_files import save_single_file
from tiny import sd_with_text

from cotrunk.runs.job import Job

PROMPTS = ("a small picture 1", "a small picture 2")
QUICK = ("--steps", 2, "--similarity", "-1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model as `model`, the same as `model.safetensors`, and the LoRAs `style` and `detail`."""
    folder, pipe = tmp_path_factory.mktemp("saved"), sd_with_text().pipe
    pipe.save_pretrained(folder / "model")
    save_single_file(pipe, folder / "model.safetensors")
    for number, name in enumerate(("style", "detail")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), name)
        weights = get_peft_model_state_dict(pipe.unet, adapter_name=name)
        pipe.save_lora_weights(folder / name, unet_lora_layers={key: 4 * weight for key, weight in weights.items()})
    return folder


def test_a_run_with_loras(saved: Path, tmp_path: Path) -> None:
    style, detail = saved / "style", saved / "detail"
    words = ("generate", *PROMPTS, "--model", saved / "model", *QUICK)
    loras = ("--lora", f"{style}:0.5", "--lora", detail)
    made = cotrunk(*words, *loras, "--vae-tiling", "--out", tmp_path / "run")
    assert made.code == 0, made.err
    job = read(tmp_path / "run")["job"]
    assert job["lora"] == [{"name": str(style), "weight": 0.5}, {"name": str(detail), "weight": 1.0}]
    assert job["vae_tiling"] is True
    assert Job.from_json(job).to_json() == job
    assert f"{style}:0.5 and {detail}" in (tmp_path / "run" / "index.html").read_text()
    other = ("--lora", f"{style}:0.6", "--lora", detail)
    refusal = cotrunk(*words, *other, "--vae-tiling", "--out", tmp_path / "run", "--resume")
    assert_refused(refusal, f"started with lora '{style}:0.5 + {detail}', not '{style}:0.6 + {detail}'")
    refusal = cotrunk(*words, *loras, "--out", tmp_path / "run", "--resume")
    assert_refused(refusal, "started with vae tiling True, not False")


def test_a_run_of_a_single_file_gives_the_images_of_the_folder(saved: Path, tmp_path: Path) -> None:
    single = ("--model", saved / "model.safetensors", "--config", saved / "model")
    for name, model in (("folder", ("--model", saved / "model")), ("file", single)):
        made = cotrunk("generate", *PROMPTS, *model, *QUICK, "--out", tmp_path / name)
        assert made.code == 0, made.err
    one, other = (sorted((tmp_path / name / "images").iterdir()) for name in ("folder", "file"))
    assert len(one) == len(PROMPTS)
    for left, right in zip(one, other, strict=True):
        assert left.read_bytes()[-200:] == right.read_bytes()[-200:]
    assert read(tmp_path / "file")["job"]["config"] == str(saved / "model")
    planned = cotrunk("plan", *PROMPTS, *single, "--similarity", "-1", "--steps", 2)
    assert planned.code == 0, planned.err


BAD = [
    (("--lora", "style:11"), "The weight of the LoRA style, 11.0 is out of range: use -10 or more, at most 10"),
    (("--lora", "no such lora"), "There is no LoRA 'no such lora'"),
    (("--lora", "none.safetensors:0.5"), "There is no LoRA none.safetensors"),
    (("--lora", "owner/a", "--lora", ""), "lora '' is not a name"),
    (("--offload", "model", "--device", "cpu"), "--offload model moves weights between the CPU and an accelerator"),
    (("--offload", "disk"), "offload 'disk' is unknown: use model, sequential or group"),
    (("--revision", "main"), "mini comes with cotrunk, so it has no revision 'main': leave --revision out"),
    (("--variant", "fp16"), "mini comes with cotrunk, so it has no variant 'fp16'"),
    (("--config", "somewhere"), "mini comes with cotrunk, so it has no config 'somewhere'"),
    (("--model", "none.safetensors"), "There is no file none.safetensors"),
    (("--model", "owner/name", "--revision", "v2"), "no folder 'owner/name' (revision 'v2'), and the hub cannot be"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_names_are_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    no_model(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert_refused(cotrunk("generate", "a cat", "--out", "run", *options), said)
    assert_refused(cotrunk("tune", *(str(i) for i in range(20)), "--out", "run", *options), said)
    assert list(tmp_path.iterdir()) == []


def test_training_names_its_model_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)
    monkeypatch.setattr("cotrunk.groups.dataset.read_groups", lambda *_: ([], {}))
    assert_refused(cotrunk("train", "groups", "--out", tmp_path / "lora", "--variant", "fp16"), "so it has no variant")
    assert not (tmp_path / "lora").exists()


def test_an_earlier_run_has_its_lora_as_a_text() -> None:
    job = Job.from_json({"prompts": ["a cat"], "lora": "owner/style"})
    assert [str(lora) for lora in job.lora] == ["owner/style"]
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert Job.from_json({"prompts": ["a cat"], "lora": None}).lora == ()
