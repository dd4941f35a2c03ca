"""Lines of other packages' errors, for messages of one line."""

from __future__ import annotations

import pytest

from multibox.errors import first_line, last_line


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (ValueError("one"), "one", "one"),
        (ValueError("\n  one\n\ttwo  \n\n"), "one", "two"),
        (ValueError(" \n "), "ValueError", "ValueError"),
        (EOFError(), "EOFError", "EOFError"),
        (OSError(2, "gone", "a.onnx"), "[Errno 2] gone: 'a.onnx'", "[Errno 2] gone: 'a.onnx'"),
    ],
)
def test_lines_of_an_error(error: Exception, first: str, last: str) -> None:
    assert (first_line(error), last_line(error)) == (first, last)
