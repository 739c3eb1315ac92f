"""PNG and JPEG to grey values in [0, 1]; what is refused, and why."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.image import inspect, perceptual_hash
from client.data.reasons import CAUSES, MAX_BYTES


def decode(path: Path) -> np.ndarray:
    facts, pixels = inspect(path)
    assert facts.reason == ""
    assert pixels is not None
    return pixels


def refusal(path: Path) -> str:
    facts, pixels = inspect(path)
    assert pixels is None
    assert facts.reason in CAUSES
    assert facts.phash == ""
    return facts.reason


def test_8_bits(tmp_path: Path, draw: Callable[..., np.ndarray]) -> None:
    pixels = draw().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    got = decode(tmp_path / "x.png")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, pixels / 255, atol=1e-6)


@pytest.mark.parametrize("top", [1023, 4095, 65535])
def test_16_bits_are_scaled_and_not_saturated(
    tmp_path: Path, draw: Callable[..., np.ndarray], top: int
) -> None:
    pixels = draw(top=top)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_allclose(decode(tmp_path / "x.png"), pixels / top, atol=1e-6)


def test_a_flat_16_bit_image_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "x.png")
    assert not decode(tmp_path / "x.png").any()


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGB", "RGBA"])
def test_grey_in_every_mode(tmp_path: Path, mode: str) -> None:
    pixels = np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), pixels / 255)


def test_alpha_is_dropped_and_not_composed(tmp_path: Path) -> None:
    pixels = np.dstack([np.full((4, 4, 3), 200), np.zeros((4, 4))]).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    np.testing.assert_allclose(decode(tmp_path / "x.png"), 200 / 255, atol=1e-6)


def test_colour_jpeg_of_a_grey_image(tmp_path: Path, draw: Callable[..., np.ndarray]) -> None:
    pixels = draw().astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "x.jpg", quality=95)
    np.testing.assert_allclose(decode(tmp_path / "x.jpg"), pixels / 255, atol=0.05)


def test_orientation_tag_is_applied(tmp_path: Path, draw: Callable[..., np.ndarray]) -> None:
    pixels = draw().astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(decode(tmp_path / "x.png"), np.rot90(pixels, -1) / 255, atol=1e-6)


def test_colour_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 2] = (90, 60, 60)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "x.jpg")
    assert refusal(tmp_path / "x.png") == "colour"
    assert refusal(tmp_path / "x.jpg") == "colour"


def test_missing_and_not_an_image(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.png") == "missing"
    (tmp_path / "notes.png").write_text("Doe^Jane, no acute findings")
    assert refusal(tmp_path / "notes.png") == "not-an-image"
    (tmp_path / "folder.png").mkdir()
    assert refusal(tmp_path / "folder.png") == "not-a-file"
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "pipe.png") == "not-a-file"
    assert refusal(Path("/dev/zero")) == "not-a-file"
    assert refusal(tmp_path / "a\0b.png") == "path"
    Image.new("L", (4, 4)).save(tmp_path / "x.gif")
    assert refusal(tmp_path / "x.gif") == "not-an-image"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(path) == "truncated"
    path.write_bytes(b"")
    assert refusal(path) == "truncated"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])
def test_a_bomb_is_refused_unread(tmp_path: Path, side: int) -> None:
    (tmp_path / "x.png").write_bytes(png_header(side, side))
    assert refusal(tmp_path / "x.png") == "too-large"


def test_several_pictures_in_one_file(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), level) for level in (0, 90)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    assert refusal(tmp_path / "x.png") == "multi-frame"


def test_damage_within_the_data(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[200:260] = b"\xff" * 60
    (tmp_path / "x.png").write_bytes(data)
    assert refusal(tmp_path / "x.png") in {"decode", "truncated"}


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    facts, _ = inspect(tmp_path / "x.png")
    assert (facts.reason, facts.sha256) == ("too-large", "")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file.png").touch()
    status = (tmp_path / "file.png").stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    assert refusal(tmp_path / "pipe.png") == "not-a-file"


def test_the_bytes_are_hashed_also_of_a_refused_file(tmp_path: Path) -> None:
    for content in (b"", b"notes", png_header(60_000, 60_000)):
        (tmp_path / "x.png").write_bytes(content)
        assert inspect(tmp_path / "x.png")[0].sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError, "memory"),
        (RecursionError, "too-deep"),
        (ValueError("Doe^Jane"), "decode"),
        (type("PanicException", (BaseException,), {}), "decode"),
    ],
)
def test_whatever_a_decoder_raises_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], reason: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr("client.data.image.grey", fail)
    assert refusal(tmp_path / "x.png") == reason


def body(side: int = 640) -> Image.Image:
    """Draw something with details of every size, as radiographs have."""
    rng = np.random.default_rng(3)
    height = side + 90
    values = np.zeros((height, side))
    for octave in range(1, 8):
        noise = Image.fromarray(rng.normal(size=(2**octave, 2**octave)).astype(np.float32))
        values += np.asarray(noise.resize((side, height), Image.Resampling.BICUBIC)) / 2**octave
    return Image.fromarray(((values - values.min()) / np.ptp(values) * 255).astype(np.uint8))


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_the_perceptual_hash_outlives_scaling_and_saving(tmp_path: Path) -> None:
    picture = body()
    picture.save(tmp_path / "x.png")
    picture.resize((400, 456)).save(tmp_path / "x.jpg", quality=90)
    Image.fromarray(np.asarray(picture).astype(np.uint16) * 16).save(tmp_path / "deep.png")
    hashes = [inspect(tmp_path / name)[0].phash for name in ("x.png", "x.jpg", "deep.png")]
    assert all(len(text) == 64 for text in hashes)
    assert max(distance(hashes[0], other) for other in hashes[1:]) <= 12
    mirrored = perceptual_hash(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert distance(hashes[0], mirrored) > 60


def test_the_hash_of_a_reduced_picture_is_the_librarys_of_the_whole() -> None:
    import imagehash

    for side in (200, 640, 1500):
        picture = body(side)
        assert distance(perceptual_hash(picture), str(imagehash.phash(picture, hash_size=16))) <= 6


def test_nothing_of_a_file_is_logged(
    tmp_path: Path, planted: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    from PIL.PngImagePlugin import PngInfo

    caplog.set_level(logging.DEBUG)
    words = PngInfo()
    words.add_text("PatientName", planted[0])
    exif = Image.Exif()
    exif[0x010E] = planted[1]
    Image.new("L", (8, 8), 3).save(tmp_path / "x.png", pnginfo=words, exif=exif)
    inspect(tmp_path / "x.png")
    assert not any(text in caplog.text for text in planted)
