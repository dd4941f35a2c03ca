"""Work done ahead of the one who asks for it, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterator[Item], start: Callable[[Item], Future[Result]], *, window: int) -> Iterator[Result]:
    """The results of work on `items`, in their order, while up to `window` of them are under way or done and waiting.

    Items are drawn in the thread of the caller, who never waits for more of them than it takes to keep busy: at least
    one before each result, and further ones only while the next result is not there yet. An error of the items or of
    the work comes where its result would have come. What is under way when the caller stops is cancelled where it has
    not begun; to wait for the rest is left to the owner of the threads.
    """
    waiting: deque[Future[Result]] = deque()
    drawing = True
    try:
        while drawing or waiting:
            drawn = False
            while drawing and len(waiting) < window and not (drawn and waiting[0].done()):
                try:
                    waiting.append(start(next(items)))
                except StopIteration:
                    drawing = False
                except Exception as error:
                    drawing = False
                    failed: Future[Result] = Future()
                    failed.set_exception(error)
                    waiting.append(failed)
                drawn = True
            if waiting:
                yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
