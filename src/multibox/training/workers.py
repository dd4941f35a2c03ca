"""Processes that make batches: what one does first, and where the loss of one is reported."""

from __future__ import annotations

import atexit
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import shared_cache

__all__ = ["prepare_worker", "received", "worker_losses_deferred"]

GRACE = 60  # seconds that a worker goes on after it was asked to end

# torch keeps a note on each batch that a worker has handed over. One that is freed as the interpreter goes, when half
# of torch is gone already, prints an error; and no more batches come then.
atexit.register(shared_cache.clear)


def prepare_worker(_: int) -> None:
    """What a worker does first."""
    torch.set_num_threads(1)  # the training process has the others
    # Both signals may reach the whole group of processes, and the training process decides what follows. But that one
    # itself ends with SIGTERM what hangs, so this is obeyed after a while.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


class _ChildSignals:
    """Signals of ended processes, which are noted while they are deferred.

    When its first workers start, torch sets a handler that raises wherever the program happens to be. That may be
    half-way through an update of the weights, or inside something that takes the error for one of its own.
    """

    def __init__(self) -> None:
        self.deferred = self.noted = False
        self.handler: Any = None  # what is called when a signal is not deferred

    def _note(self, *_: Any) -> None:
        self.noted = True

    @contextmanager
    def defer(self) -> Iterator[None]:
        can = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        if self.deferred or not can or signal.getsignal(signal.SIGCHLD) is None:  # None: set by other than Python
            yield
            return
        self.deferred, self.noted, self.handler = True, False, signal.signal(signal.SIGCHLD, self._note)
        try:
            yield
        finally:
            self.deferred = False
            signal.signal(signal.SIGCHLD, self.handler)

    @contextmanager
    def deliver(self) -> Iterator[None]:
        if not self.deferred:
            yield
            return
        signal.signal(signal.SIGCHLD, self.handler)
        try:
            if self.noted and callable(self.handler):
                self.noted = False
                self.handler(signal.SIGCHLD, None)
            yield
        finally:
            self.handler = signal.signal(signal.SIGCHLD, self._note)  # torch may just have set its own


_child_signals = _ChildSignals()
worker_losses_deferred = _child_signals.defer
"""A context in which the loss of a worker raises in `received` and nowhere else."""


def received(batches: Iterable[Any], *, workers: int) -> Generator[Any, None, None]:
    """The batches of a loader with so many workers; `contextlib.closing` lets go of the loader's processes in time.

    Raises:
        RuntimeError: also when a worker ends while it hands one over, which torch lets through as whatever the broken
            connection raised.
    """
    arriving: Iterator[Any] | None = None
    try:
        with _child_signals.deliver():
            arriving = iter(batches)
        while True:
            arrived = []
            with _child_signals.deliver():
                try:
                    arrived.append(next(arriving))
                except StopIteration:
                    return
            yield arrived.pop()  # and nothing of it stays here
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        _release(error)
        if not workers or "DataLoader worker" in str(error):  # raised by what made the batch, here or there
            raise
        reason = str(error) or type(error).__name__
        raise RuntimeError(f"DataLoader worker (pid unknown) exited unexpectedly: {reason}") from error
    except BaseException as error:
        _release(error)
        raise
    finally:
        del batches, arriving


def _release(error: BaseException | None) -> None:
    """Let go of what the functions held that an error has left: the loader's processes, and files.

    torch raises from a signal handler, so possibly while it holds files open: after a broken connection it opens a few
    to see whether their number is near its limit.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
