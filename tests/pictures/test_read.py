from __future__ import annotations

import gc
import io
import os
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from multibox.errors import ContractError, ImageError, OptionError, one_line
from multibox.pictures import opening, pixels
from multibox.pictures.read import PICTURE_SUFFIXES, picture_facts, picture_size_hw, read_picture

AVIF = ["AVIF"] if ".avif" in Image.registered_extensions() else []
RGB = np.random.default_rng(0).integers(0, 256, (11, 17, 3), np.uint8)
RGBA = np.random.default_rng(1).integers(0, 256, (11, 17, 4), np.uint8)
GREY = RGB[..., 0].copy()

UPRIGHT = {  # the stored picture -> the picture as seen, from the definition of each EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def smooth(height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    noise = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))


def encoded(image: Image.Image | NDArray[np.uint8], kind: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def sixteen_to_eight(values: NDArray[np.uint16], white: int = 65535) -> NDArray[np.uint8]:
    grey = np.floor(values * 255.0 / white + 0.5).astype(np.uint8)
    return np.stack([grey] * 3, axis=-1)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", head) + b"".join(extra) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def raw_tiff(order: str, photometric: int, bits: int, width: int, height: int, pixels: bytes) -> bytes:
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(pixels))]
    pad = pixels + b"\0" * (len(pixels) % 2)
    ifd = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
        ifd += struct.pack(order + "HHI", tag, kind, 1) + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8 + len(pad)) + pad + ifd + b"\0\0\0\0"


# ------------------------------------------------------------------------------------------ the usual case


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP", "JPEG2000", "GIF", *AVIF])
def test_rgb_of_every_format_and_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(smooth(), kind, **lossless)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    path = tmp_path / "ünï 1.dat"
    path.write_bytes(data)
    stream = io.BytesIO(b"prefix" + data)
    stream.seek(6)
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), stream, file, Image.open(path)]
        for source in sources:
            rgb = read_picture(source)  # type: ignore[arg-type]
            assert rgb.dtype == np.uint8
            assert rgb.shape == (60, 80, 3)
            np.testing.assert_array_equal(rgb, expected)
    sources[-1].close()  # type: ignore[union-attr]
    if kind in {"PNG", "BMP", "TIFF", "PPM", "WEBP"}:
        np.testing.assert_array_equal(expected, smooth())


def test_file_object_is_read_to_its_end_from_where_it_stands() -> None:
    stream = io.BytesIO(b"123" + encoded(RGB, "PNG"))
    stream.seek(3)
    np.testing.assert_array_equal(read_picture(stream), RGB)
    assert stream.read() == b""


# ------------------------------------------------------------------------------------------ without a copy

TURNED = Image.Exif()
TURNED[0x0112] = 6
SHAREABLE = {
    "jpeg": encoded(smooth(), "JPEG"),
    "turned jpeg": encoded(smooth(), "JPEG", exif=TURNED),
    "grey jpeg": encoded(smooth()[..., 0].copy(), "JPEG"),
    "cmyk jpeg": encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "grey png": encoded(GREY, "PNG"),
    "palette png": encoded(Image.fromarray(RGB).quantize(32), "PNG"),
    "bmp": encoded(RGB, "BMP"),
    "one pixel": encoded(RGB[:1, :1], "PNG"),
}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every picture read whether its pixels are Pillow's own."""
    seen: list[bool] = []
    original = pixels.shared_pixels

    def watched(image: Image.Image) -> NDArray[np.uint8] | None:
        pixels = original(image)
        seen.append(pixels is not None)
        return pixels

    monkeypatch.setattr(pixels, "shared_pixels", watched)
    return seen


@pytest.mark.parametrize("case", SHAREABLE)
def test_pixels_are_the_same_shared_and_copied(
    case: str, shared: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(SHAREABLE[case])
    ours = [read_picture(path), read_picture(SHAREABLE[case])]
    assert shared == [hasattr(Image.Image, "__arrow_c_array__")] * 2
    monkeypatch.setattr(pixels, "shared_pixels", lambda _: None)
    copied = read_picture(path)
    for rgb in ours:
        np.testing.assert_array_equal(rgb, copied)
        assert rgb.strides == copied.strides
        assert not rgb.flags.writeable


def test_shared_pixels_outlive_their_picture() -> None:
    expected = np.asarray(Image.open(io.BytesIO(SHAREABLE["jpeg"])))
    kept = [read_picture(SHAREABLE["jpeg"])[5:, ::2] for _ in range(50)]
    gc.collect()
    others = [Image.new("RGB", (80, 60), "red") for _ in range(200)]  # would take the memory if it were free
    for rgb in kept:
        np.testing.assert_array_equal(rgb, expected[5:, ::2])
    assert len(others) == 200


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a system without /proc")
def test_shared_pixels_are_let_go() -> None:
    data = encoded(Image.new("RGB", (1000, 1000)), "JPEG")  # 4 MB decoded

    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(5):
        read_picture(data)
    before = resident_pages()
    for _ in range(50):
        read_picture(data)
    assert resident_pages() - before < 50_000_000 / os.sysconf("SC_PAGE_SIZE")  # 200 MB if each were kept


def test_a_picture_of_the_caller_is_copied(shared: list[bool]) -> None:
    image = Image.fromarray(RGB)
    rgb = read_picture(image)
    image.paste((1, 2, 3), (0, 0, 17, 11))
    np.testing.assert_array_equal(rgb, RGB)
    assert shared == []


def test_rows_that_are_not_side_by_side_are_copied(shared: list[bool]) -> None:
    tall = np.arange(2200 * 2000, dtype=np.uint32).astype(np.uint8).reshape(2200, 2000)  # 17.6 MB in Pillow's memory
    np.testing.assert_array_equal(read_picture(encoded(tall, "BMP"))[..., 1], tall)
    before = Image.core.get_alignment()
    try:
        Image.core.set_alignment(64)
        np.testing.assert_array_equal(read_picture(encoded(RGB, "PNG")), RGB)
    finally:
        Image.core.set_alignment(before)
    assert shared == [False, False]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encoded(RGB, "PNG"),))
    writer.start()
    np.testing.assert_array_equal(read_picture(pipe), RGB)
    writer.join(10)


class Dripping:
    """A stream that gives a few bytes at a time, nothing at all for a moment, and then more."""

    def __init__(self, *chunks: bytes | bytearray | None) -> None:
        self.chunks = list(chunks)

    def read(self, size: int = -1) -> bytes | bytearray | None:
        return self.chunks.pop(0) if self.chunks else b""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_a_large_file_is_read_in_pieces(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    content = encoded(noise, kind)
    path = tmp_path / f"large.{kind.lower()}"
    path.write_bytes(content)
    expected = read_picture(content)
    for limit in (0, len(content) - 1, len(content)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opening, "_READ_WHOLE_BYTES", limit)
            np.testing.assert_array_equal(read_picture(path), expected)
            assert picture_size_hw(path) == (700, 900)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"ends too early|damaged"):
        read_picture(path)


def test_stream_that_gives_less_than_it_holds() -> None:
    data = encoded(smooth(), "png")
    stream = Dripping(data[:10], None, bytearray(data[10:50]), None, data[50:])
    assert np.array_equal(read_picture(cast("BinaryIO", stream)), smooth())
    with pytest.raises(ImageError, match="is longer than 5 bytes"):
        opening.read_limited(cast("BinaryIO", Dripping(b"abc", b"def")), "x", limit=5)
    assert opening.read_limited(cast("BinaryIO", Dripping(b"abc", b"de")), "x", limit=5) == b"abcde"


def test_unbuffered_pipe_and_one_that_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(smooth(), "png")
    inner, outer = os.pipe()

    def feed() -> None:
        with open(outer, "wb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
            for start in range(0, len(data), 100):
                pipe.write(data[start : start + 100])
                time.sleep(0.001)

    thread = threading.Thread(target=feed)
    thread.start()
    with open(inner, "rb", buffering=0) as stream:  # noqa: PTH123
        assert np.array_equal(read_picture(cast("BinaryIO", stream)), smooth())
    thread.join()
    monkeypatch.setattr(opening, "STREAM_SILENCE_S", 0.05)
    with pytest.raises(ImageError, match="gave nothing for"):
        read_picture(cast("BinaryIO", Dripping(*[None] * 100)))


def test_speed_is_that_of_pillow() -> None:
    data = encoded(smooth(375, 500), "JPEG", quality=90)

    def best(function: object) -> float:
        times = []
        for _ in range(25):
            start = time.perf_counter()
            function()  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return min(times)

    plain = best(lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert best(lambda: read_picture(data)) < 1.5 * plain  # about 1.0 on an idle machine


def test_suffixes_are_lower_case_and_known_to_pillow() -> None:
    unknown = PICTURE_SUFFIXES - set(Image.registered_extensions())
    assert unknown <= ({".jfif"} if AVIF else {".jfif", ".avif"})
    assert {suffix.lower() for suffix in PICTURE_SUFFIXES} == PICTURE_SUFFIXES


# ------------------------------------------------------------------------------------------ orientation


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "tiff_lzw"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "tiff_lzw": {"compression": "tiff_lzw"}}
    kind, chosen = ("TIFF" if kind == "tiff_lzw" else kind), options.get(kind, {})
    stored = np.asarray(Image.open(io.BytesIO(encoded(smooth(), kind, **chosen))).convert("RGB"))
    data = encoded(smooth(), kind, exif=rotated(orientation), **chosen)
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(read_picture(data), expected)
    assert picture_size_hw(data) == expected.shape[:2]
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(read_picture(image), expected)


@pytest.mark.skipif(not AVIF, reason="a Pillow without AVIF")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_avif(orientation: int) -> None:
    stored = read_picture(encoded(smooth(), "AVIF", quality=100))
    turned = read_picture(encoded(smooth(), "AVIF", quality=100, exif=rotated(orientation)))
    np.testing.assert_array_equal(turned, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", [2, 5, 6])
def test_orientation_of_deep_grey_and_of_exif_behind_the_pixels(orientation: int) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (5, 9), np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    late = data[:-12] + png_chunk(b"eXIf", rotated(orientation).tobytes()[6:]) + data[-12:]
    expected = UPRIGHT[orientation](sixteen_to_eight(values))
    np.testing.assert_array_equal(read_picture(late), expected)
    assert picture_size_hw(late) == expected.shape[:2]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_impossible_orientation_counts_as_upright(value: int) -> None:
    np.testing.assert_array_equal(read_picture(encoded(RGB, "PNG", exif=rotated(value))), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\xff\xff\xff\xff\xff" * 3,
        b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x0112, 2, 99, 7) * 2 + b"\0\0\0\0",
        b"Exif\0\0" + os.urandom(0) + bytes(range(200)),
    ],
)
def test_corrupt_exif_does_not_cost_the_picture(kind: str, block: bytes) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(smooth(), kind, exif=block, **options)
    if kind == "JPEG":  # without the JFIF header Pillow looks for the resolution in the EXIF block on opening
        assert data[2:4] == b"\xff\xe0"
        data = data[:2] + data[20:]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        rgb = read_picture(data)
        assert picture_size_hw(data) == (60, 80)
    assert seen == []
    assert np.abs(rgb.astype(int) - smooth()).max() <= (40 if kind == "JPEG" else 0)


@settings(max_examples=150, deadline=None)
@given(block=st.binary(max_size=120), order=st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_exif_block(block: bytes, order: bytes) -> None:
    rgb = read_picture(encoded(RGB, "PNG", exif=b"Exif\0\0" + order + block))
    assert {rgb.shape} <= {(11, 17, 3), (17, 11, 3)}
    assert np.array_equal(np.sort(rgb, axis=None), np.sort(RGB, axis=None))


# ------------------------------------------------------------------------------------------ modes


def grey3(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([grey] * 3, axis=-1)


DEEP = np.array([[0, 1, 127, 128, 129, 256, 257], [385, 386, 32767, 32768, 65278, 65407, 65535]], np.uint16)
DEEP_MSB = DEEP.astype(">u2").tobytes()
TWELVE = np.array([[0, 8, 9, 2048, 4086, 4095]], np.uint16)
PALETTE = Image.fromarray(RGB).quantize(16, dither=Image.Dither.NONE)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))
PALETTE_HOLED = PALETTE_RGB.copy()
PALETTE_HOLED[np.asarray(PALETTE) == 3] = 255
ONE_BIT = Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)
LA = np.dstack([GREY, RGBA[..., 3]])


def pack12(values: NDArray[np.uint16]) -> bytes:
    bits = "".join(f"{value:012b}" for value in values.ravel().tolist())
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def png_rows(rows: bytes, count: int) -> bytes:
    length = len(rows) // count
    return b"".join(b"\0" + rows[i * length : (i + 1) * length] for i in range(count))


MODES = {
    "1-bit": (encoded(ONE_BIT, "PNG"), grey3(np.where(GREY >= 128, 255, 0).astype(np.uint8))),
    "grey": (encoded(GREY, "PNG"), grey3(GREY)),
    "grey with a transparent level": (
        encoded(GREY, "PNG", transparency=int(GREY[0, 0])),
        grey3(np.where(np.equal(GREY, GREY[0, 0]), 255, GREY).astype(np.uint8)),
    ),
    "grey and alpha": (encoded(LA, "PNG"), over_white(np.dstack([grey3(GREY), LA[..., 1]]))),
    "rgba png": (encoded(RGBA, "PNG"), over_white(RGBA)),
    "rgba tiff": (encoded(RGBA, "TIFF"), over_white(RGBA)),
    "rgba webp": (encoded(RGBA, "WEBP", lossless=True, exact=True), over_white(RGBA)),
    "rgb with a transparent colour": (
        encoded(RGB, "PNG", transparency=tuple(RGB[2, 3].tolist())),
        np.where(np.equal(RGB, RGB[2, 3]).all(-1, keepdims=True), 255, RGB).astype(np.uint8),
    ),
    "palette": (encoded(PALETTE, "PNG"), PALETTE_RGB),
    "palette with a transparent index": (encoded(PALETTE, "PNG", transparency=3), PALETTE_HOLED),
    "palette with alpha per index": (
        encoded(PALETTE, "PNG", transparency=bytes([255, 255, 255, 0])),
        PALETTE_HOLED,
    ),
    "gif with a transparent index": (encoded(PALETTE, "GIF", transparency=3), PALETTE_HOLED),
    "16-bit grey png": (encoded(Image.fromarray(DEEP), "PNG"), sixteen_to_eight(DEEP)),
    "16-bit grey png with a transparent level": (
        raw_png(7, 2, 16, 0, png_rows(DEEP_MSB, 2), png_chunk(b"tRNS", struct.pack(">H", 385))),
        np.where(grey3(DEEP) == 385, 255, sixteen_to_eight(DEEP)).astype(np.uint8),
    ),
    "16-bit grey tiff": (encoded(Image.fromarray(DEEP), "TIFF"), sixteen_to_eight(DEEP)),
    "16-bit grey tiff, big end first": (raw_tiff(">", 1, 16, 7, 2, DEEP_MSB), sixteen_to_eight(DEEP)),
    "16-bit grey tiff, white is 0": (
        raw_tiff("<", 0, 16, 7, 2, DEEP.tobytes()),
        255 - sixteen_to_eight(DEEP),
    ),
    "12-bit grey tiff": (raw_tiff("<", 1, 12, 6, 1, pack12(TWELVE)), sixteen_to_eight(TWELVE, 4095)),
    "8-bit grey tiff, white is 0": (raw_tiff("<", 0, 8, 17, 11, GREY.tobytes()), 255 - grey3(GREY)),
    "16-bit grey pgm": (b"P5 7 2 65535\n" + DEEP_MSB, sixteen_to_eight(DEEP)),
    "10-bit grey pgm": (
        b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes(),
        np.array([[[0] * 3, [128] * 3, [255] * 3]], np.uint8),
    ),
    "32-bit grey tiff within 16 bits": (
        encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        sixteen_to_eight(DEEP),
    ),
    "32-bit grey tiff that declares its white": (
        encoded(Image.fromarray(DEEP.astype(np.int32) * 4), "TIFF", tiffinfo={341: 4 * 65535}),
        sixteen_to_eight(DEEP),
    ),
    "8-bit values in a 32-bit tiff": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), grey3(GREY)),
    "float tiff from 0 to 1": (encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), grey3(GREY)),
    "float tiff that declares its ends": (
        encoded(Image.fromarray(GREY.astype(np.float32) - 100), "TIFF", tiffinfo={340: -100.0, 341: 155.0}),
        grey3(GREY),
    ),
    "dark 16-bit pgm": (
        b"P5 2 1 65535\n" + np.array([0, 200], ">u2").tobytes(),
        np.array([[[0] * 3, [1] * 3]], np.uint8),
    ),
    "16-bit rgb png": (
        raw_png(3, 1, 16, 2, b"\0" + np.array([0, 255, 256, 511, 512, 65535, 1, 2, 65280], ">u2").tobytes()),
        np.array([[[0, 0, 1], [1, 2, 255], [0, 0, 255]]], np.uint8),  # the upper bytes
    ),
}


def test_an_unknown_white_and_further_pages_are_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_said", set())  # other tests may have said as much as is ever said
    wide = encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF")
    for _ in range(2):
        read_picture(wide, name="one.tif")
    assert [record.getMessage() for record in caplog.records if "one.tif" in record.getMessage()] == [
        "one.tif: it does not say which value is white; 65535 was taken, which no value exceeds"
    ]
    assert picture_facts(wide).white_unknown
    assert not picture_facts(encoded(Image.fromarray(DEEP), "TIFF")).white_unknown
    for kind in ("TIFF", "GIF", "PNG", "WEBP"):
        pages = encoded(Image.fromarray(RGB), kind, save_all=True, append_images=[Image.fromarray(255 - RGB)])
        assert picture_facts(pages).more_frames, kind
        assert not picture_facts(encoded(RGB, kind)).more_frames


@pytest.mark.parametrize("case", MODES)
def test_modes(case: str) -> None:
    data, expected = MODES[case]
    rgb = read_picture(data)
    np.testing.assert_array_equal(rgb, expected)
    assert picture_size_hw(data) == expected.shape[:2]


def test_sixteen_bits_are_rounded_for_every_value() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.array([round(value / 257) for value in range(65536)], np.uint8).reshape(256, 256)
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(values), "PNG")), grey3(expected))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_sixteen_bits_of_a_pillow_picture(mode: str) -> None:
    order = ">u2" if mode.endswith("B") else "<u2"
    image = Image.frombytes(mode, (7, 2), DEEP.astype(order).tobytes())
    np.testing.assert_array_equal(read_picture(image), sixteen_to_eight(DEEP))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA"])
def test_other_modes_of_pillow(mode: str) -> None:
    flat = Image.new("RGB", (4, 3), (200, 60, 40))
    if mode == "LAB":
        image = Image.new("LAB", (4, 3), (255, 128, 128))  # white
        expected = (255, 255, 255)
    elif mode in {"La", "PA"}:
        image = Image.new("LA", (4, 3), (60, 255)).convert(mode)
        expected = (60, 60, 60)
    else:
        image = (flat.convert("RGBA") if mode == "RGBa" else flat).convert(mode)
        expected = (200, 60, 40)
    rgb = read_picture(image)
    assert rgb.shape == (3, 4, 3)
    assert np.abs(rgb.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_file(kind: str) -> None:
    # Pillow writes the JPEG with an Adobe marker and inverted inks, as Photoshop does.
    flat = Image.new("RGB", (32, 16), (200, 60, 40)).convert("CMYK")
    assert np.abs(read_picture(encoded(flat, kind)).astype(int) - (200, 60, 40)).max() <= 4


def test_lab_and_ycbcr_tiff() -> None:
    white = read_picture(encoded(Image.new("LAB", (4, 3), (255, 128, 128)), "TIFF"))
    assert white.min() >= 250
    red = Image.new("RGB", (16, 16), (200, 60, 40)).convert("YCbCr")
    assert np.abs(read_picture(encoded(red, "TIFF")).astype(int) - (200, 60, 40)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame_or_page(kind: str) -> None:
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    frames = [Image.new("RGB", (16, 16), colour) for colour in colours]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(read_picture(data).astype(int) - colours[0]).max() <= 6


def test_icc_profile_is_ignored() -> None:
    data = encoded(RGB, "PNG", icc_profile=b"not a profile at all")
    np.testing.assert_array_equal(read_picture(data), RGB)


def test_pillow_picture_is_left_as_it_was() -> None:
    image = Image.fromarray(RGBA)
    image.getexif()[0x0112] = 6
    rgb = read_picture(image)
    np.testing.assert_array_equal(rgb, UPRIGHT[6](over_white(RGBA)))
    rgb[:] = 0
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(image), RGBA)
    assert image.getexif()[0x0112] == 6


# ------------------------------------------------------------------------------------------ arrays


def frozen(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, grey3(GREY)),
        (GREY[..., None], grey3(GREY)),
        (RGB, RGB),
        (RGBA, over_white(RGBA)),
        (RGB[::-2, 1::3], RGB[::-2, 1::3]),
        (RGB.transpose(1, 0, 2), RGB.transpose(1, 0, 2)),
        (np.asfortranarray(RGBA), over_white(RGBA)),
        (frozen(RGB), RGB),
        (frozen(GREY), grey3(GREY)),
        (RGB[:1, :1], RGB[:1, :1]),
    ],
)
def test_arrays(array: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    before = array.copy()
    rgb = read_picture(array)
    np.testing.assert_array_equal(rgb, expected)
    assert rgb.flags.c_contiguous
    assert picture_size_hw(array) == expected.shape[:2]
    np.testing.assert_array_equal(array, before)
    assert np.shares_memory(rgb, array) <= (array.ndim == 3 and array.shape[2] == 3 and array.flags.c_contiguous)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), np.bool_),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
    ],
)
def test_wrong_arrays(array: NDArray[np.uint8]) -> None:
    for function in (read_picture, picture_size_hw):
        with pytest.raises(ContractError, match="expected a picture as uint8") as caught:
            function(array)
        assert str(list(array.shape)) in str(caught.value)
        assert str(array.dtype) in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, [[1]], io.StringIO("text")])
def test_wrong_kinds_of_source(source: object) -> None:
    with pytest.raises(ContractError):
        read_picture(source)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ refusals

ZERO_PNG = raw_png(0, 5, 8, 2, b"\0")
REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"hello, I am a text\n" * 9, "not a picture of a known format"),
    "html": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "svg": (b"<svg xmlns='x'/>", "SVG"),
    "pdf": (b"%PDF-1.7\n%...", "PDF"),
    "npy": (b"\x93NUMPY\x01\0" + b" " * 100, "NumPy"),
    "zip": (b"PK\x03\x04" + bytes(50), "zip"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC picture, .*; convert it to JPEG first: heif"),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0mp41isom", "video"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "known format"),
    "zero width png": (ZERO_PNG, "header is damaged"),
    "zero height bmp": (encoded(RGB, "BMP")[:22] + bytes(4) + encoded(RGB, "BMP")[26:], "damaged"),
    "only a jpeg signature": (b"\xff\xd8\xff", "damaged"),
    "wide float tiff": (encoded(Image.fromarray(np.full((3, 3), 7e4, np.float32)), "TIFF"), "floating-point"),
    "float tiff without a number": (encoded(Image.fromarray(np.full((3, 3), np.nan, np.float32)), "TIFF"), "nan"),
    "wide 32-bit tiff": (encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "0 to 70000"),
    "negative 32-bit tiff": (encoded(Image.fromarray(np.array([[-1, 7]], np.int32)), "TIFF"), "-1 to 7"),
    "png with a broken stream": (
        raw_png(9, 9, 8, 2, b"").replace(zlib.compress(b""), b"\x78\x9c\xff\xff\xff\xff\xff\xff"),
        "damaged|too early",
    ),
}


def check_message(error: ImageError, name: str) -> None:
    text = str(error)
    assert text.startswith(name)
    assert text.isprintable()
    assert error.reason
    assert error.remedy


@pytest.mark.parametrize("case", REFUSED)
def test_refused_content(case: str, tmp_path: Path) -> None:
    data, words = REFUSED[case]
    path = tmp_path / "my picture.png"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, "<bytes>"), (io.BytesIO(data), "<picture>")):
        with pytest.raises(ImageError, match=words) as caught:
            read_picture(source)
        check_message(caught.value, name)
    with pytest.raises(ImageError) as caught:
        read_picture(data, name="upload\n7")
    check_message(caught.value, "upload\\n7")


def test_refused_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (tmp_path, "is a folder"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path / ("x" * 3000), "cannot be opened"),
        ("null\0byte.jpg", "cannot be opened"),
        ("", "empty name"),
    ]
    for path, words in cases:
        for function in (read_picture, picture_size_hw):
            with pytest.raises(ImageError, match=words) as caught:
                function(path)
            assert str(caught.value).isprintable()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(io, "FileIO", denied)
    with pytest.raises(ImageError, match="may not be read"):
        read_picture(tmp_path / "secret.jpg")


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_pillow_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="is empty"):
        read_picture(Image.new("RGB", size))


def test_closed_pillow_picture_and_closed_file() -> None:
    image = Image.open(io.BytesIO(encoded(RGB, "PNG")))
    image.close()
    with pytest.raises(ImageError):
        read_picture(image)
    stream = io.BytesIO(b"x")
    stream.close()
    with pytest.raises(ImageError, match="cannot be read"):
        read_picture(stream)


# ------------------------------------------------------------------------------------------ size limits


def big_png(width: int, height: int) -> bytes:
    return raw_png(width, height, 8, 0, b"")


@pytest.mark.parametrize("function", [read_picture, picture_size_hw])
def test_gigantic_pictures_are_refused_by_their_header(function: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIBOX_MAX_PIXELS", raising=False)
    before = Image.MAX_IMAGE_PIXELS
    for size in ((13_378, 13_378), (50_000, 50_000)):  # just above the limit, far above it
        with pytest.raises(ImageError, match=r"limit is 178,956,970.*MULTIBOX_MAX_PIXELS"):
            function(big_png(*size))  # type: ignore[operator]
    assert before == Image.MAX_IMAGE_PIXELS


def test_limit_is_ours_and_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(RGB, "PNG")  # 187 pixels
    with pytest.raises(ImageError, match="17 × 11 = 187 pixels, the limit is 186"):
        read_picture(data, max_pixels=186)
    with pytest.raises(ImageError, match="limit is 186"):
        read_picture(Image.fromarray(RGB), max_pixels=186)
    np.testing.assert_array_equal(read_picture(data, max_pixels=187), RGB)
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", "186")
    with pytest.raises(ImageError, match="limit is 186"):
        read_picture(data)
    np.testing.assert_array_equal(read_picture(data, max_pixels=187), RGB)
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", "1_000")
    for theirs in (1, 93, 94, 150, None):  # Pillow's error, warning or no limit at all: ours decides
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)
        np.testing.assert_array_equal(read_picture(data), RGB)
        np.testing.assert_array_equal(read_picture(encoded(RGB, "WEBP", lossless=True)), RGB)
        assert theirs == Image.MAX_IMAGE_PIXELS
    assert picture_size_hw(big_png(20_000, 20_000), max_pixels=400_000_000) == (20_000, 20_000)
    with pytest.raises(ImageError, match="limit is 399,999,999"):
        picture_size_hw(big_png(20_000, 20_000), max_pixels=399_999_999)


@pytest.mark.parametrize("value", ["many", "-5", "0", "1e9", "1.5"])
def test_bad_limit(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", value)
    with pytest.raises(OptionError, match="MULTIBOX_MAX_PIXELS"):
        read_picture(encoded(RGB, "PNG"))
    with pytest.raises(OptionError, match="at least 1"):
        read_picture(encoded(RGB, "PNG"), max_pixels=0)


# ------------------------------------------------------------------------------------------ truncation


TRUNCATED = {
    "baseline jpeg": encoded(smooth(), "JPEG", quality=80),
    "progressive jpeg": encoded(smooth(), "JPEG", quality=80, progressive=True),
    "jpeg with restarts": encoded(smooth(), "JPEG", quality=80, restart_marker_rows=1),
    "cmyk jpeg": encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
    "png": encoded(smooth(), "PNG"),
    "palette png": encoded(Image.fromarray(smooth()).quantize(32), "PNG"),
    "gif": encoded(Image.fromarray(smooth()).quantize(32), "GIF"),
    "webp": encoded(smooth(), "WEBP", quality=80),
    "lossless webp": encoded(smooth(), "WEBP", lossless=True),
    "bmp": encoded(smooth(), "BMP"),
    "tiff": encoded(smooth(), "TIFF"),
    "lzw tiff": encoded(smooth(), "TIFF", compression="tiff_lzw"),
    "deflate tiff in strips": encoded(smooth(), "TIFF", compression="tiff_adobe_deflate", strip_size=1024),
    "jpeg tiff": encoded(smooth(), "TIFF", compression="jpeg"),
    "ppm": encoded(smooth(), "PPM"),
    **{kind.lower(): encoded(smooth(), kind) for kind in AVIF},
    "jpeg 2000": encoded(smooth(), "JPEG2000"),
}


def outcome(data: bytes) -> NDArray[np.uint8] | None:
    try:
        return read_picture(data, max_pixels=1_000_000)
    except ImageError as error:
        check_message(error, "<bytes>")
        return None


@pytest.mark.parametrize("case", TRUNCATED)
def test_truncated_file_is_refused_or_complete(case: str) -> None:
    data = TRUNCATED[case]
    whole = read_picture(data)
    cuts = {*range(0, len(data), max(1, len(data) // 150)), *range(max(0, len(data) - 40), len(data))}
    refused = 0
    for cut in sorted(cuts):
        rgb = outcome(data[:cut])
        refused += rgb is None
        if rgb is not None:
            np.testing.assert_array_equal(rgb, whole, err_msg=f"cut at {cut} of {len(data)}")
    assert refused > 0.5 * len(cuts)


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
@pytest.mark.parametrize("case", ["baseline jpeg", "progressive jpeg"])
def test_jpeg_filled_up_after_a_broken_download(case: str, filling: bytes) -> None:
    thumbnail = encoded(smooth(8, 8), "JPEG")  # its end marker is not the end of the picture
    data = TRUNCATED[case]
    data = data[:2] + b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    whole = read_picture(data)
    np.testing.assert_array_equal(read_picture(data + filling * 4096), whole)
    for part in (0.5, 0.7, 0.9):
        cut = int(len(data) * part)
        with pytest.raises(ImageError):
            read_picture(data[:cut] + filling * (len(data) - cut))


# ------------------------------------------------------------------------------------------ hostile bytes


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    assert outcome(data) is None


SIGNATURES = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"P6 2 2 255\n",
]
SIGNATURES += [
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"\0\0\0\x20ftypavif",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
]


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(SIGNATURES), data=st.binary(max_size=300))
def test_random_bytes_behind_a_signature(start: bytes, data: bytes) -> None:
    rgb = outcome(start + data)
    assert rgb is None or (rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3)


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(sorted(TRUNCATED)), seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
def test_flipped_bytes(case: str, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(TRUNCATED[case])
    for position in rng.integers(0, min(len(data), 700), count):
        data[position] = rng.integers(256)
    rgb = outcome(bytes(data))
    assert rgb is None or (rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3)


@pytest.mark.slow
@given(text=st.text() | st.binary().map(os.fsdecode))
def test_one_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown


# ------------------------------------------------------------------------------------------ threads


def test_threads_leave_filters_and_limit_alone() -> None:
    corrupt = encoded(smooth(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0" + bytes(range(100)))
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(30):
                assert read_picture(corrupt).shape == (60, 80, 3)
                assert picture_size_hw(big_png(20_000, 20_000), max_pixels=400_000_000)[0] == 20_000
        except Exception as error:
            failures.append(error)

    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert list(warnings.filters) == before
    assert limit == Image.MAX_IMAGE_PIXELS
