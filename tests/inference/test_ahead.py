"""Work ahead of its caller: order, bounds, errors, and threads that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from multibox.inference.ahead import ahead


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


def counted(items: range, drawn: list[int]) -> Iterator[int]:
    for item in items:
        drawn.append(item)
        yield item


def test_order_is_kept_though_the_first_ends_last(pool: ThreadPoolExecutor) -> None:
    gate = threading.Event()

    def work(i: int) -> int:
        if i == 0:
            assert gate.wait(10)
        elif i == 2:
            gate.set()
        return i * i

    assert list(ahead(iter(range(20)), lambda i: pool.submit(work, i), window=4)) == [i * i for i in range(20)]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_never_more_than_the_window(pool: ThreadPoolExecutor, window: int) -> None:
    drawn: list[int] = []
    for taken, _ in enumerate(ahead(counted(range(30), drawn), lambda i: pool.submit(pow, i, 2), window=window), 1):
        assert len(drawn) <= taken + window - 1


def test_nothing_is_drawn_before_it_is_asked_for(pool: ThreadPoolExecutor) -> None:
    drawn: list[int] = []
    results = ahead(counted(range(9), drawn), lambda i: pool.submit(pow, i, 2), window=3)
    assert drawn == []
    assert next(results) == 0
    assert 1 <= len(drawn) <= 3


def test_a_finished_result_waits_for_one_item_only() -> None:
    """Of a source that is slow, one item is drawn before a result that is there, not a whole window."""
    drawn: list[int] = []

    def start(item: int) -> Future[int]:
        done: Future[int] = Future()
        done.set_result(item)
        return done

    results = ahead(counted(range(9), drawn), start, window=5)
    for count in range(1, 6):
        assert next(results) == count - 1
        assert len(drawn) == count


def failing(i: int) -> int:
    if i == 3:
        raise ValueError("three")
    return i


def items_that_fail() -> Iterator[int]:
    yield from range(3)
    raise ValueError("three")


@pytest.mark.parametrize("where", ["work", "start", "items"])
def test_errors_come_in_their_turn(pool: ThreadPoolExecutor, where: str) -> None:
    def start(i: int) -> Future[int]:
        return pool.submit(pow, failing(i), 1) if where == "start" else pool.submit(failing, i)

    results = ahead(items_that_fail() if where == "items" else iter(range(9)), start, window=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(results) == []


def test_closing_cancels_what_has_not_begun() -> None:
    gate = threading.Event()
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i:
            assert gate.wait(10)
        return i

    with ThreadPoolExecutor(1) as pool:
        results = ahead(iter(range(50)), lambda i: pool.submit(work, i), window=6)
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        gate.set()
    assert len(begun) <= 2
