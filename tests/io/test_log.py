import logging
import subprocess
import sys

from videomar_jax.io.log import log

PROGRAM = """
import logging
from absl import flags
flags.FLAGS.mark_as_parsed()
from videomar_jax.io.log import log, show_log
log.info("not shown yet")
show_log()
log.info("%d clips", 3)
logging.getLogger("videomar_jax.some.module").info("of a module")
logging.getLogger("jax").info("news of a library")
logging.getLogger("orbax").warning("a library warns")
"""


def test_the_commands_show_our_messages_and_the_warnings_of_libraries():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    told = [line.split(" ", 1) for line in result.stderr.splitlines()]
    assert [text for _, text in told] == ["3 clips", "of a module", "a library warns"]
    assert all(len(time) == 8 and time.count(":") == 2 for time, _ in told)


def test_a_module_needs_no_logger_of_its_own(caplog):
    assert log.name == "videomar_jax"
    with caplog.at_level(logging.INFO, logger="videomar_jax"):
        log.info("%d clips", 3)
    assert caplog.messages == ["3 clips"]
