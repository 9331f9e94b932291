"""Vectors that are kept in files: each text is embedded once, whatever is stopped in between."""

from pathlib import Path

import numpy as np
import pytest

from cotrunk.errors import CotrunkError
from cotrunk.planning import text_blocks
from cotrunk.planning.embedding import Encoder
from cotrunk.planning.vector_files import PROBES, VectorFiles

PROMPTS = [f"prompt {'x' * (i % 7)}{i}" for i in range(20)]


class Counting:
    """An encoder that remembers which texts it has embedded."""

    def __init__(self, factor: int = 1) -> None:
        self.texts, self.factor = list[str](), factor

    @property
    def encoder(self) -> Encoder:
        return Encoder("counting", self.encode)

    def encode(self, prompts: list[str]) -> np.ndarray:
        if tuple(prompts) != PROBES:
            self.texts += prompts
        return np.array([[sum(map(ord, p)) % 97 * self.factor, len(p), hash_of(p)] for p in prompts], np.float32)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-3:], "little") % 1009


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK", 3)


def test_each_text_is_embedded_once_in_any_order(tmp_path: Path) -> None:
    counting, seen = Counting(), list[tuple[int, int]]()
    files = VectorFiles(tmp_path / "vectors", lambda *block: seen.append(block))
    prompts = PROMPTS + PROMPTS[::2]
    expected = counting.encode(prompts)
    counting.texts.clear()
    np.testing.assert_array_equal(files.kept(counting.encoder).encode(prompts), expected)
    assert sorted(counting.texts) == sorted(PROMPTS)
    assert seen == [(3, 20), (6, 20), (9, 20), (12, 20), (15, 20), (18, 20), (20, 20)]
    counting.texts.clear()
    longer = ["new", *PROMPTS[::-1], "newer", "new"]
    found = VectorFiles(tmp_path / "vectors").kept(counting.encoder).encode(longer)
    assert sorted(counting.texts) == ["new", "newer"]
    np.testing.assert_array_equal(found, counting.encode(longer))


def test_a_stopped_plan_continues(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    counting = Counting()
    with pytest.raises(KeyboardInterrupt):
        VectorFiles(tmp_path, stop).kept(counting.encoder).encode(PROMPTS)
    assert len(counting.texts) == 9
    (tmp_path / ".left.cotrunk-part").write_bytes(b"half a file")
    VectorFiles(tmp_path).kept(counting.encoder).encode(PROMPTS)
    assert sorted(counting.texts) == sorted(PROMPTS)
    assert not list(tmp_path.glob(".*"))


def test_damaged_files_are_embedded_again(tmp_path: Path) -> None:
    counting = Counting()
    files = VectorFiles(tmp_path).kept(counting.encoder)
    expected = files.encode(PROMPTS)
    damaged = sorted(tmp_path.glob("*.npz"))[:2]
    damaged[0].write_bytes(damaged[0].read_bytes()[:200])
    damaged[1].write_bytes(b"")
    counting.texts.clear()
    np.testing.assert_array_equal(files.encode(PROMPTS), expected)
    assert 4 <= len(counting.texts) <= 6


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    VectorFiles(tmp_path).kept(Counting().encoder).encode(PROMPTS[:2])
    with pytest.raises(CotrunkError, match="holds vectors of another text encoder: name another folder"):
        VectorFiles(tmp_path).kept(Counting(2).encoder).encode(PROMPTS[:2])
    (tmp_path / "encoder.npy").write_bytes(b"?")
    with pytest.raises(CotrunkError, match=r"encoder\.npy is damaged: remove it"):
        VectorFiles(tmp_path).kept(Counting().encoder).encode(PROMPTS[:2])
    (tmp_path / "file").touch()
    with pytest.raises(CotrunkError, match=r"Cannot write to .*file"):
        VectorFiles(tmp_path / "file")


def test_no_prompts(tmp_path: Path) -> None:
    assert len(VectorFiles(tmp_path).kept(Counting().encoder).encode([])) == 0
