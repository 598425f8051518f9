"""A roll call before JAX starts several processes.

`jax.distributed.initialize` ends the program from C++, with a stack trace, when a process is
missing or comes twice. Here the processes meet first, over a plain socket at the same address, and
each of them gets the same Python error that says what is wrong:

1. Process 0 listens on the coordinator's port. Every process, 0 included, connects and says who it
   is: {"id": 3, "of": 8, "who": "host (pid 4711)"} and a newline.
2. As soon as all processes have come, or two of them do not agree, process 0 answers each of them:
   {"error": ""} or the fault.
3. All hang up, which leaves the port to JAX.
"""

import contextlib
import json
import os
import socket
import threading
import time
from typing import NamedTuple

from videomar_jax.checks import UserError

_PAUSE = 0.2
"""Seconds between two attempts to connect."""
_LATE = 3.0
"""Seconds for which a fault is still reported to processes that come after it was found."""
_MARGIN = 1.0
"""Seconds by which process 0 gives up before the others, so that they learn who is missing."""
_CALLER_TIMEOUT = 5.0
"""Seconds for a process that has connected to say who it is."""
_Callers = dict[int, str]


class _Caller(NamedTuple):
    """What a process says when it connects."""

    number: int
    count: int  # of processes, as it was started with
    who: str


def meet(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns in each of `num_processes` processes when all of them have called it.

    Args:
        coordinator: "host:port"; the host must be that of process 0, the port free there.
        timeout: seconds until the processes that have come give up.
    Raises:
        TimeoutError: nobody answers at `coordinator`, or some processes did not come (their numbers
            are named).
        UserError: two processes have the same number, or different numbers of processes.
        OSError: process 0 cannot listen on the port.
    """
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        if process_id == 0:
            listener = stack.enter_context(_listen(coordinator))
            arguments = (listener, num_processes, deadline, timeout)
            server = threading.Thread(target=_serve, args=arguments, name="roll-call", daemon=True)
            server.start()
            stack.callback(server.join)
        fault = _call(coordinator, num_processes, process_id, deadline, timeout)
    if fault:
        raise (TimeoutError if fault.startswith("After") else UserError)(fault)


def split(coordinator: str) -> tuple[str, int]:
    """(host, port) of "host:port"; an IPv6 address is written in brackets.

    Raises:
        UserError: the text has another form.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"The coordinator is written host:port, for instance 10.0.0.1:1234, not "
            f"{coordinator!r}."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


# Process 0: the server


def _listen(coordinator: str) -> socket.socket:
    port = split(coordinator)[1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(
            f"Process 0 cannot listen on port {port} of the coordinator {coordinator}: "
            f"{error.strerror}. Another run, or another process 0, may use it: stop that one, or "
            f"choose another port for all processes."
        ) from error


def _serve(listener: socket.socket, num_processes: int, deadline: float, timeout: float) -> None:
    """Takes calls until the answer is known and gives it to all; a fault also to late callers."""
    callers: _Callers = {}
    waiting: list[socket.socket] = []
    fault = ""
    while len(callers) < num_processes and not fault:
        connection = _accept(listener, deadline - _MARGIN)
        if connection is None:
            fault = _absent(callers, num_processes, timeout)
        else:
            waiting.append(connection)
            fault = _register(_read_caller(connection), callers, num_processes)
    for connection in waiting:
        _answer(connection, fault)
    late = time.monotonic() + _LATE
    while fault:
        connection = _accept(listener, late)
        if connection is None:
            break
        _read_caller(connection)
        _answer(connection, fault)


def _accept(listener: socket.socket, until: float) -> socket.socket | None:
    listener.settimeout(max(until - time.monotonic(), 0.05))
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    connection.settimeout(_CALLER_TIMEOUT)
    return connection


def _answer(connection: socket.socket, fault: str) -> None:
    with connection, contextlib.suppress(OSError):
        connection.sendall(json.dumps({"error": fault}).encode() + b"\n")


def _read_caller(connection: socket.socket) -> _Caller | None:
    """What a caller says; None for one that is not a process of ours, such as a port scanner."""
    try:
        with connection.makefile("rb") as lines:
            said = json.loads(lines.readline(1000))
        return _Caller(int(said["id"]), int(said["of"]), str(said["who"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _register(caller: _Caller | None, callers: _Callers, num_processes: int) -> str:
    """Adds a caller to the list; returns what is wrong with it, or ""."""
    if caller is None:
        return ""
    if caller.count != num_processes:
        return (
            f"Process {caller.number} on {caller.who} was started with {caller.count} processes, "
            f"process 0 with {num_processes}."
        )
    if caller.number in callers:
        return (
            f"Process {caller.number} was started twice, on {callers[caller.number]} and on "
            f"{caller.who}. Give each its own number."
        )
    callers[caller.number] = caller.who
    return ""


def _absent(callers: _Callers, num_processes: int, timeout: float) -> str:
    missing = [number for number in range(num_processes) if number not in callers]
    listed = ", ".join(map(str, missing[:10]))
    if len(missing) > 10:
        listed += f" and {len(missing) - 10} more"
    return (
        f"After {timeout:.0f} s only {len(callers)} of {num_processes} processes have come; "
        f"missing: number {listed}. Look at what they printed, and whether every number from 0 to "
        f"{num_processes - 1} was started."
    )


# Every process: the call


def _call(
    coordinator: str, num_processes: int, process_id: int, deadline: float, timeout: float
) -> str:
    """Says who we are until process 0 answers; returns the answer."""
    who = f"{socket.gethostname()} (pid {os.getpid()})"
    hello = json.dumps({"id": process_id, "of": num_processes, "who": who}).encode() + b"\n"
    reason: object = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(split(coordinator), timeout=left) as connection:
                connection.settimeout(max(deadline - time.monotonic(), 0.05))
                connection.sendall(hello)
                with connection.makefile("rb") as lines:
                    return str(json.loads(lines.readline())["error"])
        except OSError as error:
            # Not there yet, its name not known yet, or an earlier run that still uses the port.
            reason = error
        except (ValueError, KeyError, TypeError):
            reason = "something other than this run answers there"
        time.sleep(_PAUSE)
    raise TimeoutError(
        f"Process {process_id} could not reach process 0 at the coordinator {coordinator} within "
        f"{timeout:.0f} s ({reason}). Process 0 must run on that host, and its port must be open "
        f"to the others."
    )
