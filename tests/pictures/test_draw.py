from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageFont

from multibox.errors import ContractError
from multibox.pictures import draw as drawing
from multibox.pictures.draw import class_colour, draw_boxes

Box = tuple[float, float, float, float]
WHITE = (255, 255, 255)


def plain(height: int, width: int, value: int = 255) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def drawn(
    rgb: NDArray[np.uint8], *rows: tuple[tuple[float, float, float, float], str], **options: int
) -> NDArray[np.uint8]:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    image = draw_boxes(rgb, boxes, [text for _, text in rows], list(range(len(rows))), **options)
    assert image.mode == "RGB"
    assert image.size == (rgb.shape[1], rgb.shape[0])
    return np.asarray(image)


def changed(after: NDArray[np.uint8], value: int = 255) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((after != value).any(-1))
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def test_box_covers_exactly_its_pixels() -> None:
    after = drawn(plain(40, 60), ((10, 5, 30, 25), ""), line_width=2)
    expected = plain(40, 60)
    expected[5:25, 10:30] = class_colour(0)
    expected[7:23, 12:28] = 255
    np.testing.assert_array_equal(after, expected)


def test_input_is_left_alone_and_nothing_drawn_is_a_copy() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    before = rgb.copy()
    rgb.flags.writeable = False
    assert changed(drawn(rgb, ((5, 20, 60, 45), "dog 0.5")))
    np.testing.assert_array_equal(rgb, before)
    np.testing.assert_array_equal(drawn(rgb), before)
    np.testing.assert_array_equal(drawn(rgb[::2, ::-1]), before[::2, ::-1])


@pytest.mark.parametrize(
    ("height", "width", "line", "font"),
    [(32, 32, 1, 9), (375, 500, 2, 12), (3000, 4000, 16, 96), (4000, 6000, 22, 136)],
)
def test_sizes_follow_the_picture(
    height: int, width: int, line: int, font: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    load = ImageFont.load_default
    monkeypatch.setattr(ImageFont, "load_default", lambda size: asked.append(size) or load(size))
    drawing._own_font.cache_clear()
    box = (0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height)
    after = drawn(plain(height, width), (box, "dog"))
    column = (after[:, width // 2 + width // 8] == class_colour(0)).all(-1)
    rows = np.flatnonzero(column[int(0.85 * height) :])
    assert len(rows) == line
    assert asked == [font]


def test_chip_stands_above_its_box_or_inside_without_room() -> None:
    left, top, _, bottom = changed(drawn(plain(200, 300), ((50, 100, 250, 180), "person 0.93")))
    assert (left, bottom) == (50, 179)
    assert 80 < top < 95
    no_box = drawn(plain(200, 300), ((50, 0, 250, 180), ""))
    inside = drawn(plain(200, 300), ((50, 0, 250, 180), "person 0.93"))
    difference = (inside != no_box).any(-1)
    assert difference.any()
    assert not difference[20:].any()
    assert not difference[:, :50].any()


@pytest.mark.parametrize(("index", "value"), [(i, v) for i in range(12) for v in (0, 128, 255)])
def test_caption_contrasts_with_its_chip(index: int, value: int) -> None:
    rgb = plain(800, 1200, value)
    after = np.asarray(draw_boxes(rgb, np.array([[50, 400, 1150, 780]]), ["MMMM"], [index]))
    chip = after[385:395, 60:100].reshape(-1, 3)  # at half the height of the letters
    background, text = class_colour(index), drawing._text_colour(class_colour(index))
    assert (chip == background).all(-1).any()
    assert (chip == text).all(-1).any()
    lighter, darker = sorted((drawing._luminance(text), drawing._luminance(background)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2, level AA


def test_later_boxes_lie_on_top() -> None:
    after = drawn(plain(60, 60), ((10, 10, 40, 40), ""), ((10, 10, 50, 50), ""), line_width=3)
    assert tuple(after[11, 11]) == class_colour(1)
    assert tuple(after[38, 38]) == class_colour(0)


def test_captions_make_room_for_each_other() -> None:
    box = (60, 100, 200, 200)
    places: list[tuple[int, int, int, int]] = []
    taken = np.zeros((0, 4), np.int64)
    for _ in range(6):
        places.append(drawing._place((70, 14), box, (300, 300), taken))
        taken = np.array(places)
    assert places[0] == (60, 86, 129, 99)
    for (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) in itertools.combinations(places, 2):
        assert ax1 < bx0 or bx1 < ax0 or ay1 < by0 or by1 < ay0


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    box=st.tuples(*[st.integers(-30, 120)] * 4),
    others=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=5),
)
def test_chips_stay_inside_the_picture(
    size: tuple[int, int], box: tuple[int, int, int, int], others: list[tuple[int, int]]
) -> None:
    taken = np.array([(x, y, x + 9, y + 9) for x, y in others], np.int64).reshape(-1, 4)
    x0, y0, x1, y1 = drawing._place(size, box, (90, 80), taken)
    assert 0 <= x0 <= x1 < 90
    assert 0 <= y0 <= y1 < 80
    assert (x1 - x0 + 1, y1 - y0 + 1) == size


@pytest.mark.parametrize(
    "box",
    [
        (-50, -50, 20, 20),
        (80, 60, 500, 500),
        (-1e9, -1e9, 1e9, 1e9),
        (30, 30, 30, 30),
        (30, 30, 30, 60),
        (60, 60, 20, 20),
        (30.2, 30.2, 30.4, 30.4),
        (0, 0, 100, 80),
        (100, 80, 100, 80),
    ],
)
def test_degenerate_boxes_still_show(box: tuple[float, float, float, float]) -> None:
    after = drawn(plain(80, 100), (box, "x 1.00"))
    assert (after != 255).any()


@pytest.mark.parametrize("box", [(200, 10, 300, 20), (-20, -20, -5, -5), (np.nan, 0, 5, 5), (0, 0, np.inf, 5)])
def test_boxes_outside_or_not_finite_are_left_out(box: tuple[float, float, float, float]) -> None:
    np.testing.assert_array_equal(drawn(plain(80, 100), (box, "x 1.00")), plain(80, 100))


def test_border_of_a_box_beyond_the_picture_is_not_drawn_along_its_edge() -> None:
    after = drawn(plain(80, 100), ((-40, 20, 140, 60), ""), line_width=4)
    assert tuple(after[40, 0]) == tuple(after[40, 99]) == WHITE
    assert tuple(after[21, 0]) == class_colour(0)


TEXTS = [
    "café éàü",
    "自行车 0.9",
    "😀🐕‍🦺",
    "a\nb\tc\0",
    "\ud800",
    "עברית",
    "\u0301\u0302",
    " ",
    "x" * 5000,
    "ﷺ",
    "…",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("fonts", ["installed", "own only", "bitmap"])
def test_any_caption(text: str, fonts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fonts != "installed":
        monkeypatch.setattr(drawing, "_WIDER_FONTS", ())
        drawing._installed_fonts.cache_clear()
    if fonts == "bitmap":
        bitmap = ImageFont.load_default_imagefont()

        def without_freetype(size: float | None = None) -> object:
            if size is not None:
                raise ImportError("The _imagingft C module is not installed")
            return bitmap

        monkeypatch.setattr(ImageFont, "load_default", without_freetype)
        drawing._own_font.cache_clear()
    try:
        with_text = drawn(plain(300, 400), ((50, 100, 250, 180), text))
    finally:
        drawing._own_font.cache_clear()
        drawing._installed_fonts.cache_clear()
    without = drawn(plain(300, 400), ((50, 100, 250, 180), ""))
    nothing_to_say = not "".join(char for char in text if char.isprintable()).strip()
    assert np.array_equal(with_text, without) == nothing_to_say


def test_unknown_letters_become_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_WIDER_FONTS", ())
    drawing._installed_fonts.cache_clear()
    text, font = drawing._drawable("Café  ½\n車 dog", 20)
    drawing._installed_fonts.cache_clear()
    assert text == "Cafe 1 ? dog" or all(drawing._knows(font, char) for char in text)
    assert drawing._drawable("dog 0.93", 20)[0] == "dog 0.93"


def test_long_caption_is_cut_and_an_overwhelming_one_left_out() -> None:
    font = drawing._own_font(12)
    text, (wide, _) = drawing._fitted("a very long caption that goes on and on", font, (100, 100))
    assert text.startswith("a very")
    assert text.endswith(("…", "..."))
    assert wide <= 100
    assert drawing._fitted("person 0.93", font, (30, 20))[0] == ""
    assert drawing._fitted("", font, (100, 100))[0] == ""


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3), (32, 32), (20, 2000)])
def test_small_and_thin_pictures(height: int, width: int) -> None:
    after = drawn(plain(height, width), ((0, 0, width, height), "person 0.93"))
    assert (after != 255).any()


def test_colours_are_stable_and_far_apart() -> None:
    colours = [class_colour(index) for index in range(91)]
    assert colours == [class_colour(index) for index in range(91)]
    assert len(set(colours)) == 91
    for near in range(1, 4):
        for first, second in zip(colours, colours[near:], strict=False):
            assert np.abs(np.subtract(first, second)).sum() > 100
    assert all(drawing._luminance(colour) >= 0.12 for colour in map(class_colour, range(1000)))


def test_wrong_input() -> None:
    box, rgb = np.array([[1, 2, 3, 4]]), plain(10, 10)
    with pytest.raises(ContractError, match=r"uint8 \[H, W, 3\], got float64 \[10, 10, 3\]"):
        draw_boxes(rgb.astype(float), box, ["a"], [0])  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"got uint8 \[10, 10\]"):
        draw_boxes(rgb[..., 0], box, ["a"], [0])
    with pytest.raises(ContractError, match=r"\[N, 4\], got \[1, 3\]"):
        draw_boxes(rgb, box[:, :3], ["a"], [0])
    with pytest.raises(ContractError, match="got 2 and 1 for 1"):
        draw_boxes(rgb, box, ["a", "b"], [0])
    with pytest.raises(ContractError, match="got 0 and 1 for 1"):
        draw_boxes(rgb, box, [], [0])


def test_many_boxes_are_quick_and_deterministic() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 400, (300, 4))
    captions, labels = [f"class {i} 0.50" for i in range(300)], list(range(300))
    first = np.asarray(draw_boxes(plain(400, 400), boxes, captions, labels))
    np.testing.assert_array_equal(first, np.asarray(draw_boxes(plain(400, 400), boxes, captions, labels)))
