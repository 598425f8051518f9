"""Long work over many items: threads that work ahead of it, and how far it has come, a line every
few seconds."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_log = logging.getLogger(__name__)
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


class Progress:
    """Counts up to `total`, of which `done` are there from the beginning; says so every `every`
    seconds."""

    def __init__(self, what: str, total: int, *, done: int = 0, every: float = 5.0):
        self.what, self.total, self.done, self.failed = what, total, done, 0
        self._every, self._from = every, done
        self._started = self._said = time.monotonic()

    def add(self, count: int = 1, *, failed: int = 0) -> None:
        """`count` more are done, of which `failed` came to nothing."""
        self.done += count
        self.failed += failed
        if time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            _log.info(self.line())

    def line(self) -> str:
        """Done of total, rate, time left."""
        rate = (self.done - self._from) / max(time.monotonic() - self._started, 1e-9)
        left = (
            f", {duration((self.total - self.done) / rate)} left"
            if rate and self.done < self.total
            else ""
        )
        failed = f", {self.failed} rejected" if self.failed else ""
        return f"{self.done} of {self.total} {self.what}, {rate:.3g}/s{left}{failed}"


def duration(seconds: float) -> str:
    """Seconds in words, such as 40 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def read_ahead(
    call: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int
) -> Iterator[_Result]:
    """`call` of every item, in order; threads are at most `ahead` items in front of what was
    taken."""
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
