"""Bad input: exit code 2 and one sentence, before a model is loaded and before anything is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROMPTS, Outcome, assert_refused, cotrunk, no_model, pipeline


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--tolerance", "-0.1"), "tolerance -0.1 is out of range"),
        (("--guidance-interval", "0.2", "1.5"), "guidance_interval (0.2, 1.5) is out of range"),
        (
            ("--no-skip", "--tolerance", "0.1"),
            "--no-skip skips nothing, and --tolerance says how much to skip: give one",
        ),
        (
            ("--no-skip", "--fidelity", "high"),
            "--no-skip skips nothing, and --fidelity says how much to skip: give one",
        ),
        (("--exact", "--skip"), "--exact neither shares nor skips, and --skip does: give one of them"),
        (("--exact", "--tolerance", "0.1"), "--exact neither shares nor skips, and --tolerance does"),
        (("--exact", "--share", "0.2"), "--exact neither shares nor skips, and --share does"),
        (("--exact", "--trunk-guidance", "0"), "--exact neither shares nor skips, and --trunk-guidance does"),
        (("--trunk-guidance", "low"), "--trunk-guidance 'low' is neither auto nor a number from 0 to 1"),
    ],
)
def test_bad_skipping_is_refused(model: pytest.MonkeyPatch, tmp_path: Path, option: tuple[str, ...], said: str) -> None:
    assert_refused(cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *option), said)
    assert not (tmp_path / "run").exists()


FILES = {
    "empty.txt": (b"", ["holds no prompt"]),
    "blank.txt": (b"\n  \n", ["holds no prompt"]),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0", ["is binary"]),
    "latin1.txt": ("caf\u00e9".encode("latin-1"), ["not UTF-8"]),
    "broken.jsonl": (b'{"prompt": "a"}\n\n{"prompt": \n', ["line 3", "invalid JSON"]),
    "column.csv": (b"id,caption\n1,a cat\n", ["no column 'prompt'", "'caption'"]),
    "column.jsonl": (b'{"text": "a"}\n', ["line 1", "no column 'prompt'"]),
    "number.json": (b"[3]", ["item 1", "must be a string"]),
}


@pytest.mark.parametrize("verb", ["generate", "plan"])
@pytest.mark.parametrize("name", FILES)
def test_bad_prompt_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str, name: str) -> None:
    no_model(monkeypatch)
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    out = ("--out", tmp_path / "run") if verb == "generate" else ()
    assert_refused(cotrunk(verb, "--prompts", tmp_path / name, *out), name, *said)
    assert not (tmp_path / "run").exists()


OPTIONS = [
    (["--share", "nan"], "share nan is out of range"),
    (["--share", "1"], "share 1.0 is out of range"),
    (["--share", "-0.1"], "share -0.1 is out of range"),
    (["--similarity", "nan"], "similarity nan is out of range"),
    (["--similarity", "1.5"], "similarity 1.5 is out of range"),
    (["--similarity", "high"], "--similarity 'high' is neither auto nor a number"),
    (["--guidance", "nan"], "--guidance nan is out of range"),
    (["--guidance", "inf"], "--guidance inf is out of range"),
    (["--guidance", "-1"], "--guidance -1.0 is out of range"),
    (["--steps", "0"], "--steps 0 is out of range"),
    (["--seed", "-1"], "--seed -1 is out of range"),
    (["--seed", str(2**63)], f"--seed {2**63} is out of range"),
    (["--max-group", "-1"], "--max-group -1 is out of range"),
    (["--images-per-prompt", "0"], "--images-per-prompt 0 is out of range"),
    (["--mode", "round"], "mode 'round' is unknown: use flat, adaptive or tree"),
    (["--scheduler", "nosuch"], "Unknown scheduler 'nosuch': use ddim"),
    (["--scheduler", "StableDiffusionPipeline"], "Unknown scheduler"),
    (["--max-rows", "0"], "--max-rows 0 is out of range"),
    (["--device", "abacus"], "Device 'abacus' is not usable here"),
    (["--device", "meta"], "Device 'meta' is not usable here"),
    (["--dtype", "float8"], "Unknown dtype 'float8'"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS)
def test_bad_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], said: str) -> None:
    no_model(monkeypatch)
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run", *options), said)
    assert not (tmp_path / "run").exists()
    if options[0] not in ("--max-rows", "--device", "--dtype"):
        assert_refused(cotrunk("plan", "a cat", *options), said)


@pytest.mark.parametrize("options", [["--steps", "many"], ["--sheep", "3"]])
def test_options_that_cannot_be_read(options: list[str], tmp_path: Path) -> None:
    outcome = cotrunk("generate", "a cat", "--out", tmp_path / "run", *options)
    assert outcome.code == 2
    assert options[0] in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("generate", "a cat", "--offload", "model", "--offload", "group"), "--offload"),
        (("generate", "a cat", "--steps", "3", "--seed", "1", "--steps=4"), "--steps"),
        (("generate", "a cat", "--tolerance", "0.2", "--tolerance", "0.1"), "--tolerance"),
        (("generate", "a cat", "--steps", "3", "--num-inference-steps", "4"), "--steps"),
        (
            ("generate", "a cat", "--guidance-interval", "0", "1", "--guidance-interval", "0", "0.5"),
            "--guidance-interval",
        ),
        (("plan", "--prompts", "a.txt", "--prompts", "b.txt"), "--prompts"),
        (("tune", "a cat", "--budget", "3", "--budget", "3"), "--budget"),
        (("dataset", "x", "--images", "a", "--images", "b"), "--images"),
        (("train", "x", "--rank", "2", "--rank", "4"), "--rank"),
        (("evaluate", "x", "--shares", "0.1", "--lora", "a=b", "--shares", "0.2", "--lora", "c=d"), "--shares"),
    ],
)
def test_an_option_given_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], option: str
) -> None:
    no_model(monkeypatch)
    out = () if arguments[0] == "plan" else ("--out", tmp_path / "run")
    assert_refused(cotrunk(*arguments, *out), f"{option} is given 2 times: give it once.")
    assert not (tmp_path / "run").exists()


def test_lists_and_flags_may_be_given_twice() -> None:
    assert_refused(cotrunk("evaluate", "x", "--lora", "a=b", "--lora", "a=c", "--out", "y"), "a name that is taken")
    assert_refused(cotrunk("generate", "a cat", "--compare", "--compare", "--steps", 0, "--out", "y"), "--steps 0")


def test_prompts_come_from_arguments_or_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    out = ("--out", tmp_path / "run")
    assert_refused(cotrunk("generate", "a dog", "--prompts", tmp_path / "p.txt", *out), "either as arguments or with")
    assert_refused(cotrunk("generate", *out), "either as arguments or with")
    assert_refused(cotrunk("generate", "a dog", " ", *out), "A prompt is empty")
    assert_refused(cotrunk("generate", tmp_path / "p.txt", *out), "is a file", "--prompts")
    assert_refused(cotrunk("generate", "--prompts", tmp_path / "none.txt", *out), "There is no file")
    assert_refused(cotrunk("generate", "--prompts", tmp_path, *out), "is a folder")


def test_missing_out() -> None:
    assert_refused(cotrunk("generate", "a cat"), "--out DIR")
    assert_refused(cotrunk("generate", "a cat", "--out", ""), "--out DIR")  # an unset variable of a shell


def test_an_unknown_model(tmp_path: Path) -> None:
    outcome = cotrunk("generate", "a cat", "--out", tmp_path / "run", "--model", "./no such folder")
    assert_refused(outcome, "There is no model './no such folder'", "use mini")


def test_a_folder_that_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = cotrunk("generate", "a cat", "--out", tmp_path / "run", "--model", tmp_path / "empty")
    assert_refused(outcome, "cannot be loaded as a diffusers pipeline")


def test_out_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        assert_refused(cotrunk("generate", "a cat", "--out", out), "Cannot write to", "Choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_files_of_a_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    for name in ("index.html", "run.json", "plan.json"):
        out = tmp_path / f"with-{name}"
        out.mkdir()
        (out / name).write_text("mine")
        assert_refused(cotrunk("generate", "a cat", "--out", out), "already holds a run", name, "--resume")
        assert_refused(cotrunk("generate", "a cat", "--out", out, "--resume"), "no readable run.json")
        assert [path.name for path in out.iterdir()] == [name]
        assert (out / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("generate cat --out run --plan s3://bucket/plan.json", "--plan 's3://bucket/plan.json'"),
        ("generate --prompts s3://bucket/cats.txt --out run", "--prompts 's3://bucket/cats.txt'"),
        ("generate cat --out run --control-image gs://bucket/a.png", "--control-image 'gs://bucket/a.png'"),
        ("plan cat --save s3://bucket/plan.json", "--save 's3://bucket/plan.json'"),
        ("merge one s3://bucket/two --out run", "'s3://bucket/two'"),
        ("export s3://KEY:SEC/RET@bucket/run --out shards", "'s3://bucket/run'"),
        ("redo s3://bucket/run/images/00000.png --out run", "'s3://bucket/run/images/00000.png'"),
        ("generate cat --out run --trunks s3://bucket/trunks", "--trunks 's3://bucket/trunks'"),
    ],
)
def test_a_url_in_place_of_a_file_is_refused(
    command: str, names: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal = cotrunk(*command.split())
    assert_refused(refusal, f"error: {names} is a URL: download what is there, and name the file or folder on")
    assert not any(tmp_path.iterdir())


def test_a_url_that_lacks_a_slash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    said = "--out 's3:/bucket/run' lacks a slash: write s3://bucket/run, or ./s3:/bucket/run for a folder."
    assert_refused(cotrunk("generate", "a cat", "--out", "s3:/bucket/run"), said)
    assert not any(tmp_path.iterdir())


def test_exit_code_and_streams_of_a_process(tmp_path: Path) -> None:
    """A real process, as a shell sees it."""
    (tmp_path / "empty.txt").write_bytes(b"")
    command = [sys.executable, "-m", "cotrunk", "generate", "--prompts", "empty.txt", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), "empty.txt holds no prompt")
    assert not (tmp_path / "run").exists()


def test_a_video_pipeline_is_refused_before_denoising(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model.setattr(pipeline(), "video_processor", object(), raising=False)
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run"), "makes video: use cotrunk.generate")


def test_a_pipeline_that_needs_an_image_is_refused_before_denoising(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    model.setattr(type(pipeline()), "__call__", StableDiffusionImg2ImgPipeline.__call__)
    said = "needs an input image (image): give --image"
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run"), said)


def test_brackets_in_a_model_name_are_not_markup(tmp_path: Path) -> None:
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run", "--model", "[/foo]"), "no model '[/foo]'")


def test_a_negative_prompt_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    refusal = cotrunk("generate", "a cat", "--negative", "a \udcff dog", "--out", tmp_path / "run")
    assert_refused(refusal, "negative_prompt contains an invalid surrogate")


def test_closed_streams_and_other_encodings(tmp_path: Path) -> None:
    """Shells can close streams, and terminals can have other encodings."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = f"{sys.executable} -m cotrunk plan"
    done = subprocess.run(f"{command} --prompts - <&-", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), "Standard input is closed")
    (tmp_path / "äpple").mkdir()
    done = subprocess.run(
        f"{command} --prompts äpple", shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), r"\xe4pple is a folder")


def test_a_prompt_that_is_not_unicode(tmp_path: Path) -> None:
    refusal = cotrunk("generate", "a cat", "a \udcff dog", "--out", tmp_path / "run")
    assert_refused(refusal, "prompt 1: the prompt contains an invalid surrogate")
