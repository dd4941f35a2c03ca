from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import multibox
from multibox.errors import ImageError
from multibox.pictures import urls
from multibox.pictures.output_names import unique_output_names
from multibox.pictures.sources import Expansion, Source, expand_sources

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    return buffer.getvalue()


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small collection in pics/."""
    monkeypatch.chdir(tmp_path)
    put(*(tmp_path / "pics" / name for name in ("img10.jpg", "img2.JPG", "img1.png", "sub/b.webp", "sub/deep/c.tiff")))
    put(tmp_path / "pics/.hidden.jpg", tmp_path / "pics/.git/x.png", tmp_path / "odd.dat")
    (tmp_path / "pics/labels.txt").write_text("img1.png")
    (tmp_path / "pics/sub/notes.md").write_text("")
    return tmp_path


def names(expansion: Expansion) -> list[str]:
    return [PurePosixPath(source.name).as_posix() for source in expansion.sources]


def reasons(expansion: Expansion) -> list[str]:
    assert all(str(problem).isprintable() and problem.remedy for problem in expansion.problems)
    return [f"{problem.source}: {problem.reason}" for problem in expansion.problems]


PICS = ["pics/img1.png", "pics/img2.JPG", "pics/img10.jpg", "pics/sub/b.webp", "pics/sub/deep/c.tiff"]


@pytest.mark.parametrize(
    ("arguments", "expected", "skipped"),
    [
        ([], [], 0),
        (["odd.dat"], ["odd.dat"], 0),
        (["pics"], PICS, 2),
        (["pics/"], PICS, 2),
        (["./pics"], PICS, 2),
        (["pics/img2.JPG", "pics"], [PICS[1], PICS[0], *PICS[2:]], 2),
        (["pics", "pics/img1.png", "./pics/../pics/img1.png", "pics/*.png"], PICS, 2),
        (["pics/*.jpg"], ["pics/img10.jpg"], 0),
        (["pics/img*"], PICS[:3], 0),
        (["pics/img?.png"], PICS[:1], 0),
        (["pics/img[12].*"], PICS[:2], 0),
        (["pics/*"], PICS, 2),
        (["pics/**"], PICS, 2),
        (["**/*.tiff"], PICS[4:], 0),
        (["pics/**/*.png"], PICS[:1], 0),
        (["pi*/s?b/*.webp"], PICS[3:4], 0),
        (["*.dat"], ["odd.dat"], 0),
        (["pics/*.txt"], ["pics/labels.txt"], 0),
        (["pics/.h*"], ["pics/.hidden.jpg"], 0),
        (["pics/labels.txt"], ["pics/labels.txt"], 0),
    ],
)
def test_files_folders_and_patterns(folder: Path, arguments: list[str], expected: list[str], skipped: int) -> None:
    expansion = expand_sources(arguments)
    assert names(expansion) == expected
    assert reasons(expansion) == []
    assert expansion.skipped == skipped
    absolute = expand_sources([f"{folder}/{argument}" for argument in arguments])
    assert [os.path.relpath(source.name, folder) for source in absolute.sources] == expected
    for source in expansion.sources:
        if not source.name.endswith(".txt"):
            np.testing.assert_array_equal(source.read(), RGB)


def test_path_objects_current_folder_and_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(expand_sources([folder / "odd.dat"])) == [str(folder / "odd.dat")]
    monkeypatch.chdir(folder / "pics")
    assert names(expand_sources(["."])) == [name.removeprefix("pics/") for name in PICS]
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert names(expand_sources(["~/odd.dat", "~/pics/*.png"])) == [
        str(folder / "odd.dat"),
        str(folder / PICS[0]),
    ]


def test_real_names_with_brackets_win_over_patterns(folder: Path) -> None:
    put(folder / "a[1].png", folder / "a1.png", folder / "dir[x]/q.png", folder / "what?.png")
    assert names(expand_sources(["a[1].png"])) == ["a[1].png"]
    assert names(expand_sources(["dir[x]/*.png"])) == ["dir[x]/q.png"]
    assert names(expand_sources(["dir[x]"])) == ["dir[x]/q.png"]
    assert names(expand_sources(["what?.png"])) == ["what?.png"]


def test_problems_stop_nobody_else(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text("")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    arguments = ["missing.jpg", "odd.dat", "empty", "texts", "none*.png", "gone.png", "ftp://host/a.png"]
    expansion = expand_sources([*arguments, "", "odd.dat/x", "missing.jpg", "null\0byte", "pics/img1.png"])
    assert names(expansion) == ["odd.dat", "pics/img1.png"]
    with pytest.raises(ValueError, match="null") as caught:
        Path("null\0byte").stat()
    refusal = str(caught.value)
    assert reasons(expansion) == [
        "missing.jpg: there is no such file or folder",
        "empty: this folder holds no picture",
        "texts: this folder holds no picture among its 1 files",
        "none*.png: this pattern matches nothing",
        "gone.png: is a broken link",
        "ftp://host/a.png: ftp addresses are not read",
        "'': is an empty name",
        "odd.dat/x: cannot be opened (Not a directory)",
        "null\\x00byte: cannot be opened (" + refusal + ")",
    ]


def test_pattern_without_pictures(folder: Path) -> None:
    assert reasons(expand_sources(["pics/lab*"])) == ["pics/lab*: this pattern matches 1 entries, none a picture"]


@pytest.mark.parametrize("argument", ["pics", "pics/**", "pics/**/*.png", "pics/*"])
def test_unreadable_folder_is_reported(folder: Path, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    expansion = expand_sources([argument])
    assert names(expansion) == (PICS[:1] if argument.endswith("png") else PICS[:4])
    assert reasons(expansion) == ["pics/sub/deep: this folder cannot be read (Permission denied)"]


def test_links(folder: Path) -> None:
    (folder / "pics/loop").symlink_to(folder / "pics")
    (folder / "pics/sub/up").symlink_to("..")
    (folder / "pics/self").symlink_to("self")
    (folder / "other").symlink_to("pics")
    (folder / "pics/sub/again.png").symlink_to(folder / "pics/img1.png")
    (folder / "pics/sub/dead.png").symlink_to("nowhere")
    expected = [*PICS[:3], "pics/sub/again.png", *PICS[3:]]
    for arguments in (["pics"], ["pics/**"], ["pics", "other"], ["pics", "other/sub/b.webp"]):
        expansion = expand_sources(arguments)
        assert names(expansion) == expected
        assert "pics/sub/dead.png: is a broken link" in reasons(expansion)
    assert names(expand_sources(["pics/**/b.*"])) == ["pics/sub/b.webp"]


def test_two_loops_do_not_multiply(folder: Path) -> None:
    (folder / "pics/x").symlink_to(".")
    (folder / "pics/y").symlink_to(".")
    start = time.monotonic()
    assert names(expand_sources(["pics/**/*.png"])) == PICS[:1]
    assert time.monotonic() - start < 5


def test_undecodable_name_can_be_read_and_printed(folder: Path) -> None:
    raw = os.fsencode(folder) + b"/bad\xff\n.png"
    try:
        Path(os.fsdecode(raw)).write_bytes(png())
    except OSError:
        pytest.skip("this file system takes no such name")
    (source,) = expand_sources([folder / "*ad*.png"]).sources
    assert source.name.isprintable()
    np.testing.assert_array_equal(source.read(), RGB)


def test_list_file_is_taken_as_a_picture_and_refused(folder: Path) -> None:
    (source,) = expand_sources(["pics/labels.txt"]).sources
    with pytest.raises(ImageError, match=r"^pics/labels\.txt: is not a picture"):
        source.read()


# ------------------------------------------------------------------------------------------ standard input


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_standard_input() -> None:
    expansion = expand_sources(["-", "-"], stdin=io.BytesIO(png()))
    (source,) = expansion.sources
    assert (source.name, source.stem, expansion.problems) == ("-", "stdin", [])
    np.testing.assert_array_equal(source.read(), RGB)
    with pytest.raises(ImageError, match=r"^-: is empty"):
        source.read()
    assert reasons(expand_sources(["-"], stdin=Terminal())) == ["-: standard input holds no picture"]


def test_pixel_limit_is_passed_on(folder: Path) -> None:
    for source in (
        *expand_sources(["odd.dat"]).sources,
        *expand_sources(["-"], stdin=io.BytesIO(png())).sources,
    ):
        with pytest.raises(ImageError, match="limit is 53"):
            source.read(max_pixels=53)


# ------------------------------------------------------------------------------------------ addresses


class Handler(BaseHTTPRequestHandler):
    agents: list[str]

    def do_GET(self) -> None:
        self.agents.append(self.headers["User-Agent"])
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            target = {"file": "file:///etc/hostname", "ftp": "ftp://127.0.0.1/a.png", "loop": "/to/loop"}
            self.answer(302, b"", {"Location": target.get(path[4:], "/cat.png")})
        elif path == "/slow":
            time.sleep(1.5)
        elif path == "/drip":
            self.answer(200, b"", {"Content-Length": "1000"})
            for _ in range(30):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif path == "/short":
            self.answer(200, png()[:40], {"Content-Length": "1000"})
        elif path == "/endless":
            self.answer(200, bytes(300_000))
        elif path == "/page":
            self.answer(200, b"<html>hello</html>", {"Content-Type": "text/html"})
        elif path == "/nonsense":
            self.wfile.write(b"\0\1\2\n\n")
        elif path in {"/cat.png", "/a%20b%C3%BC.png", "/"}:
            self.answer(200, png(), {"Content-Type": "image/png"})
        elif path == "/wrong-type":
            self.answer(200, png(), {"Content-Type": "text/plain"})
        else:
            self.send_error(404)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Handler.agents = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign] # clients hang up on purpose
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join(10)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("path", ["/cat.png", "/cat.png?size=1&x=a b", "/to/cat", "/wrong-type", "/a bü.png", ""])
def test_address(server: str, path: str) -> None:
    expansion = expand_sources([server + path, server + path])
    (source,) = expansion.sources
    assert source.name == server + path
    np.testing.assert_array_equal(source.read(), RGB)
    assert set(Handler.agents) == {f"multibox/{multibox.__version__}"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none.png", "the server answered 404 Not Found"),
        ("/page", "is a web page, not a picture; the server calls it text/html; download"),
        ("/to/file", "the server answered 302.*not allowed"),
        ("/to/ftp", "cannot be downloaded .unknown url type"),
        ("/to/loop", "the server answered 302.*infinite loop"),
        ("/short", "the connection ended after 40 of 1,000 bytes"),
        ("/nonsense", "cannot be downloaded|the server answered|is not a picture|is empty"),
        ("/slow", "does not answer in time"),
        ("/drip", "does not answer in time"),
        ("/endless", "is longer than 200,000 bytes"),
    ],
)
def test_address_that_gives_no_picture(server: str, path: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "URL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(urls, "URL_MAX_BYTES", 200_000)
    (source,) = expand_sources([server + path]).sources
    with pytest.raises(ImageError, match=words) as caught:
        source.read()
    assert caught.value.source == server + path
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:1/a.png", "cannot be downloaded .Connection refused"),
        ("http://", "not a usable address"),
        ("http://host:port/a.png", "not a usable address"),
        ("http://[::1/a.png", "not a usable address"),
        ("http://" + "a" * 70 + ".org/x.png", "not a usable address"),
        ("https://127.0.0.1:1/a.png", "cannot be downloaded"),
    ],
)
def test_unusable_address(address: str, words: str) -> None:
    (source,) = expand_sources([address]).sources
    with pytest.raises(ImageError, match=words):
        source.read()


def test_password_is_not_printed() -> None:
    (source,) = expand_sources(["http://me:secret@127.0.0.1:1/a.png"]).sources
    with pytest.raises(ImageError, match="no user name") as caught:
        source.read()
    assert "secret" not in str(caught.value) + source.name + repr(unique_output_names([source]))


# ------------------------------------------------------------------------------------------ output names


def files(*paths: str) -> list[Source]:
    return [Source(path, "file", path) for path in paths]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["a/cat.jpg"], ["cat"]),
        (["a/cat.jpg", "b/dog.png"], ["cat", "dog"]),
        (["a/cat.jpg", "b/cat.png"], ["a_cat", "b_cat"]),
        (["a/cat.jpg", "a/cat.png"], ["cat_jpg", "cat_png"]),
        (["a/cat.jpg", "a/cat.png", "b/cat.png"], ["a_cat_jpg", "a_cat_png", "b_cat_png"]),
        (["x/1/cat.jpg", "y/1/cat.jpg"], ["x_1_cat", "y_1_cat"]),
        (["a/cat.jpg", "b/cat.jpg", "a_cat.jpg"], ["a_cat_2", "b_cat", "a_cat"]),
        (["a/Cat.jpg", "a/cat.jpg"], ["Cat", "cat_2"]),
        (["a/my photo.v2.jpg"], ["my photo.v2"]),
        (
            ["con.jpg", "what<is>:this?.png", ".jpg", "  .png", "a. .png"],
            ["_con", "what_is_this_", "jpg", "picture", "a"],
        ),
        (["../../etc/pass.wd"], ["pass"]),
    ],
)
def test_output_names(paths: list[str], expected: list[str]) -> None:
    assert unique_output_names(files(*paths)) == expected


def test_output_names_of_addresses_and_standard_input() -> None:
    arguments = [
        "http://a.org/x/cat.png?size=3",
        "http://b.org/x/cat.png",
        "https://c.org/",
        "-",
        "http://d.org/%2e%2e%2fup.png",
    ]
    got = unique_output_names(expand_sources(arguments, stdin=io.BytesIO()).sources)
    assert got == ["a.org_x_cat", "b.org_x_cat", "c", "stdin", "up"]


paths = st.lists(st.text("ab/.\\ :*CON\u0301é\ud800", min_size=1, max_size=12) | st.text(min_size=1), max_size=12)


@settings(max_examples=300, deadline=None)
@given(paths=paths)
def test_output_names_are_distinct_safe_and_inside(paths: list[str]) -> None:
    got = unique_output_names(files(*(path.replace("\0", "") or "x" for path in paths)))
    assert len({name.casefold() for name in got}) == len(paths)
    for name in got:
        assert name
        assert name == Path(name).name
        assert not set(name) & set('<>:"/\\|?*')
        assert name.isprintable()
        assert not name.startswith(".")
        assert not name.endswith((".", " "))
        assert name.split(".")[0].upper() not in {"CON", "NUL", "AUX", "PRN", "COM1", "LPT1"}
        assert len(name.encode()) <= 200
