"""Processes that make batches: what one does first, what follows when one is lost, and their end."""

from __future__ import annotations

import atexit
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import shared_cache
from torch.utils.data._utils import signal_handling

__all__ = ["end_workers", "losses_wait", "prepare_worker", "received"]

LINGER = 60  # seconds that a process of pictures goes on after it was asked to end

# torch keeps a note on each batch that a worker has handed over. One that is freed as the interpreter goes, when half
# of torch is gone already, prints an error; and no more batches come then.
atexit.register(shared_cache.clear)


def prepare_worker(_: int) -> None:
    """What a process that reads pictures does first."""
    torch.set_num_threads(1)  # the training process has the others
    # Both signals may reach the whole group of processes, and the training process decides what follows. But that one
    # itself ends with SIGTERM what hangs, so this is obeyed after a while.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))


class _Losses:
    """In place of torch's handler of ended processes, which raises wherever the program happens to be.

    That may be half-way through an update of the weights, or inside something that takes the error for one of its own.
    This one lets it raise where a batch is waited for, and notes what happens elsewhere.
    """

    def __init__(self) -> None:
        self.handler: Any = None
        self.waiting = self.noted = False

    def __call__(self, number: int, frame: Any) -> None:
        if not self.waiting:
            self.noted = True
        elif callable(self.handler):
            self.handler(number, frame)

    @contextmanager
    def listening(self) -> Iterator[None]:
        self.waiting = True
        try:
            if self.noted:
                self.noted = False
                self(signal.SIGCHLD, None)
            yield
        finally:
            self.waiting = False


_losses = _Losses()


@contextmanager
def losses_wait() -> Iterator[None]:
    """While open, the loss of a worker is told by `received` and nowhere else."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # torch sets no handler either
        return
    signal_handling._set_SIGCHLD_handler()
    before = signal.getsignal(signal.SIGCHLD)
    if before is _losses or before is None:  # open already, or set by something that is not Python
        yield
        return
    _losses.handler, _losses.noted = before, False
    signal.signal(signal.SIGCHLD, _losses)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def received(batches: Iterable[Any], *, workers: int) -> Iterator[Any]:
    """The batches of a loader with so many workers.

    Raises:
        RuntimeError: also when a worker ends while it hands one over, which torch lets through as whatever the broken
            connection raised.
    """
    try:
        batches = iter(batches)
        while True:
            arrived = []
            with _losses.listening():
                try:
                    arrived.append(next(batches))
                except StopIteration:
                    return
            yield arrived.pop()  # and nothing of it stays here
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            _release(error)
        raise
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not workers or "DataLoader worker" in str(error):  # raised by what made the batch, here or there
            raise
        reason = str(error) or type(error).__name__
        raise RuntimeError(f"DataLoader worker (pid unknown) exited unexpectedly: {reason}") from error


def _release(error: BaseException | None) -> None:
    """Let go of what the functions held that an error has left.

    torch raises from a signal handler, so possibly while it holds files open: after a broken connection it opens a few
    to see whether their number is near its limit.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def end_workers(batches: Any) -> None:
    """End the processes behind a loader's iterator now; an error's traceback could keep them until the very end."""
    end = getattr(batches, "_shutdown_workers", None)
    if end is None:
        return
    try:
        end()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # what torch raises, wherever it is, when one has died before
            raise
