"""Long work over many items: threads that work ahead, and lines that say how far it has come."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from videomar_jax.io.log import log

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Progress:
    """Counts items and logs a line every few seconds.

    what: the items, as the line calls them.
    total: how many there are; done: how many of them from an earlier start.
    every: seconds between two lines.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, every: float = 5.0):
        self.what = what
        self.total = total
        self.done = done
        self.failed = 0
        self._every = every
        self._done_before = done
        self._started = self._reported = time.monotonic()

    def add(self, count: int = 1, *, failed: int = 0) -> None:
        """`count` more are done, of which `failed` failed."""
        self.done += count
        self.failed += failed
        if time.monotonic() - self._reported >= self._every:
            self._reported = time.monotonic()
            log.info(self.line())

    def line(self) -> str:
        """Done of total, rate, time left."""
        rate = (self.done - self._done_before) / max(time.monotonic() - self._started, 1e-9)
        left = ""
        if rate and self.done < self.total:
            left = f", {duration((self.total - self.done) / rate)} left"
        failed = f", {self.failed} rejected" if self.failed else ""
        return f"{self.done} of {self.total} {self.what}, {rate:.3g}/s{left}{failed}"


def duration(seconds: float) -> str:
    """Seconds in words, such as 40 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def read_ahead(
    call: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int
) -> Iterator[_Result]:
    """`call` of every item, in order; threads are at most `ahead` items in front of the reader.

    Raises:
        Exception: what `call` raises, in its turn.
    """
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
