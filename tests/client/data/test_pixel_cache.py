"""The pixel cache: decoded once, changed files again, and right after a kill at any moment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data import pixel_cache
from client.data.pixel_cache import PixelCache
from common.errors import DataError

SIZE = 8
PATHS = [f"{i}.png" for i in range(6)]


def write(folder: Path, level: int, name: str) -> None:
    Image.fromarray(np.full((12, 10), level, np.uint8)).save(folder / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(PATHS):
        write(tmp_path, 10 + i, name)
    return tmp_path


def load(root: Path, paths: list[str] = PATHS) -> PixelCache:
    return PixelCache.open(root / "cache", paths, root, SIZE)


def levels(cache: PixelCache) -> list[int]:
    return [int(image[0, 0]) for image in cache.pixels]


def test_a_second_open_decodes_nothing(root: Path, decoded: list[str]) -> None:
    first = load(root)
    assert sorted(decoded) == PATHS
    decoded.clear()
    second = load(root)
    assert decoded == []
    assert levels(first) == levels(second) == [10, 11, 12, 13, 14, 15]
    assert second.ok.all()
    assert second.pixels.shape == (6, SIZE, SIZE)
    assert not second.pixels.flags.writeable


def test_a_changed_file_is_decoded_again_and_an_open_map_keeps_its_pixels(
    root: Path, decoded: list[str]
) -> None:
    before = load(root)
    decoded.clear()
    write(root, 200, "2.png")
    after = load(root)
    assert decoded == ["2.png"]
    assert levels(after)[2] == 200
    assert levels(before)[2] == 12


def test_a_file_touched_but_of_the_same_size_is_decoded_again(root: Path, decoded: list[str]) -> None:
    load(root)
    decoded.clear()
    os.utime(root / "3.png", ns=(1, 1))
    load(root)
    assert decoded == ["3.png"]


def test_rows_follow_the_table_and_leave_with_it(root: Path, decoded: list[str]) -> None:
    load(root)
    decoded.clear()
    cache = load(root, ["4.png", "0.png"])
    assert decoded == []
    assert levels(cache) == [14, 10]
    folder = root / "cache" / "crop-8-refuse-v2"
    assert len(list(folder.glob("pixels-*"))) == 1
    (rows,) = folder.glob("rows-*")
    assert "3.png" not in rows.read_text()


def test_bad_images_are_told_and_a_missing_one_is_tried_again(root: Path, decoded: list[str]) -> None:
    (root / "1.png").write_text("not an image")
    (root / "4.png").unlink()
    cache = load(root)
    assert cache.reasons == ("", "not-an-image", "", "", "missing", "")
    assert cache.ok.tolist() == [True, False, True, True, False, True]
    assert not cache.pixels[1].any()
    decoded.clear()
    write(root, 99, "4.png")
    cache = load(root)
    assert decoded == ["4.png"]
    assert levels(cache)[4] == 99


def test_files_are_for_their_owner_only(root: Path) -> None:
    load(root)
    folder = root / "cache" / "crop-8-refuse-v2"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_preprocessing_is_another_cache(root: Path) -> None:
    load(root)
    other = PixelCache.open(root / "cache", PATHS, root, 4, "pad")
    assert other.pixels.shape == (6, 4, 4)
    assert levels(load(root)) == [10, 11, 12, 13, 14, 15]


ROWS = [b"[1]\n", b'[9, "x", 1, 1, ""]\n', b"\xff\n"]
DAMAGE = [b"", b"{", b"[]", b"\n", b'{"rows": 3}\n', *(b'{"rows": 6}\n' + row for row in ROWS)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_made_again(root: Path, damage: bytes) -> None:
    load(root)
    (root / "cache" / "crop-8-refuse-v2" / "rows-0001.jsonl").write_bytes(damage)
    assert levels(load(root)) == [10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped(root: Path, decoded: list[str], cut: int) -> None:
    load(root)
    rows = root / "cache" / "crop-8-refuse-v2" / "rows-0001.jsonl"
    os.truncate(rows, rows.stat().st_size - cut)
    decoded.clear()
    for _ in range(2):
        assert levels(load(root)) == [10, 11, 12, 13, 14, 15]
    assert len(decoded) == 1


def test_a_pixel_file_cut_short_is_made_again(root: Path) -> None:
    load(root)
    os.truncate(root / "cache" / "crop-8-refuse-v2" / "pixels-0001.u8", 100)
    assert levels(load(root)) == [10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("step", ["put", "append", "replace"])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_stop_at_any_step_never_gives_wrong_pixels(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: str, calls: int
) -> None:
    """Stop at the n-th write of pixels or rows, or at the rename; open again with one file changed."""
    target, name = {
        "put": (pixel_cache._Store, "_put"),
        "append": (pixel_cache, "_write"),
        "replace": (pixel_cache.os, "replace"),
    }[step]
    monkeypatch.setattr(pixel_cache, "_CHUNK", 2)
    real, left = getattr(target, name), [calls]

    def stopping(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, stopping)
        if step == "replace" and calls:
            load(root)  # a first load renames once
        else:
            with pytest.raises(KeyboardInterrupt):
                load(root)
    write(root, 77, "0.png")
    assert levels(load(root)) == [77, 11, 12, 13, 14, 15]


SLOWLY = f"""
import sys, time
from pathlib import Path
from client.data import pixel_cache
from client.data.workers import Workers
real, root = Workers.read, Path(sys.argv[1])
def slow(self, paths, *how):
    for result in real(self, paths, *how):
        time.sleep(0.1)
        yield result
if __name__ == "__main__":
    Workers.read, pixel_cache._CHUNK = slow, 1
    pixel_cache.PixelCache.open(root / "cache", {PATHS}, root, {SIZE})
"""


def start_slowly(root: Path) -> subprocess.Popen[bytes]:
    """Open the cache in another process, one image at a time; returns once one is vouched for."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(root)], cwd=Path(pixel_cache.__file__).parents[2]
    )
    rows = root / "cache" / "crop-8-refuse-v2" / "rows-0001.jsonl"
    deadline = time.monotonic() + 30
    while not (rows.exists() and "png" in rows.read_text()):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return child


def test_killed_while_decoding_it_goes_on_where_it_was(root: Path, decoded: list[str]) -> None:
    with start_slowly(root) as child:
        child.kill()
    assert levels(load(root)) == [10, 11, 12, 13, 14, 15]
    assert 0 < len(decoded) < 6


def test_two_processes_at_once_decode_once(root: Path, decoded: list[str]) -> None:
    with start_slowly(root) as child:
        cache = load(root)
    assert child.returncode == 0
    assert decoded == []
    assert levels(cache) == [10, 11, 12, 13, 14, 15]


def test_a_full_disk_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pixel_cache.os, "pwrite", full)
        with pytest.raises(DataError, match="No space left on device"):
            load(root)
    assert levels(load(root)) == [10, 11, 12, 13, 14, 15]


def test_no_rows(root: Path) -> None:
    assert load(root, []).pixels.shape == (0, SIZE, SIZE)
