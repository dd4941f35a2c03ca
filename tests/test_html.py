"""The pieces of HTML reports: what they escape, and that a page is whole without anything outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from multibox.html import Html, Mark, bars, details, embedded, escape, gallery, page, picture, table, tag, tiles

EVIL = '<img src=x onerror="1">&\udcff'
SHOWN = "&lt;img src=x onerror=&quot;1&quot;&gt;&amp;\\udcff"
VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Fails where elements do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def everything() -> Html:
    marks = [Mark((5, 5, 30, 30), "#fff", EVIL), Mark((-20, 2, 10, 60), "#f00", dashed=True)]
    return page(
        EVIL,
        [
            EVIL,
            tiles([(EVIL, EVIL)]),
            table([EVIL, "n"], [[EVIL, 1], [tag("b", EVIL), 2]], numbers=(1,), sortable=True),
            bars([EVIL], [(EVIL, [1]), (EVIL, [2])], rate=True),
            details(EVIL, [EVIL]),
            embedded(b"png", "png", EVIL),
            gallery([(picture(b"jpeg", (50, 40), marks, caption=EVIL), {"errors": 2})], order=["errors"]),
        ],
        subtitle=EVIL,
    )


def test_whatever_is_shown_is_escaped_and_elements_close() -> None:
    text = everything()
    assert EVIL not in text
    assert text.count(SHOWN) >= 17
    text.encode("utf-8")
    Balance(text)
    assert escape(tag("p", "a")) == "<p>a</p>"


def test_nothing_outside_is_referred_to() -> None:
    text = everything().replace(SHOWN, "")
    references = re.findall(r"(?:src|href|url|@import)\s*[=(]?\s*[\"']?([^\"' )>]{1,12})", text)
    assert references
    assert all(value.startswith("data:image") for value in references), references


def test_a_picture_is_extended_to_its_boxes() -> None:
    text = picture(b"", (50, 40), [Mark((-20, 2, 10, 60), "#f00")])
    assert 'viewBox="-20.0 0.0 70.0 60.0"' in text
    assert 'viewBox="0.0 0.0 50.0 40.0"' in picture(b"", (50, 40), [])
    assert 'viewBox="0.0 0.0 150.0 40.0"' in picture(b"", (50, 40), [Mark((0, 0, 9000, 5), "#f00")])
