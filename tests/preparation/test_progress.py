import logging
import threading
import time

import pytest

from videomar_jax.preparation import progress
from videomar_jax.preparation.progress import Progress, duration, read_ahead


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_count_this_session_only(clock):
    count = Progress("clips", 1000, done=400)
    clock[0] += 50
    count.add(100, failed=3)
    assert count.line() == "500 of 1000 clips, 2/s, 4 min left, 3 rejected"
    count.add(500)
    assert count.line() == "1000 of 1000 clips, 12/s, 3 rejected"
    assert "left" not in Progress("clips", 10).line()


def test_a_line_every_few_seconds(clock, caplog):
    count = Progress("clips", 100, every=5.0)
    with caplog.at_level(logging.INFO):
        for _ in range(40):
            clock[0] += 0.5
            count.add()
    assert [record.getMessage() for record in caplog.records] == [
        f"{done} of 100 clips, 2/s, {(100 - done) // 2} s left" for done in (10, 20, 30, 40)
    ]


def test_durations_in_words():
    words = [duration(seconds) for seconds in (4.4, 99.0, 200.0, 5000.0, 9000.0)]
    assert words == ["4 s", "99 s", "3 min", "83 min", "2.5 h"]


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_threads_are_not_far_ahead(threads):
    lock, started, taken, most = threading.Lock(), 0, 0, 0

    def work(item):
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - taken)
        time.sleep(0.001 * (item % 3))
        return item * item

    found = []
    for result in read_ahead(work, range(30), threads=threads, ahead=5):
        found.append(result)
        with lock:
            taken += 1
    assert found == [item * item for item in range(30)] and 1 < most <= 7


def test_an_error_ends_the_reading():
    def work(item):
        if item == 3:
            raise ValueError("item 3")
        return item

    found = []
    with pytest.raises(ValueError, match="item 3"):
        for result in read_ahead(work, range(1000), threads=2, ahead=4):
            found.append(result)
    assert found == [0, 1, 2]
