"""A roll-call before JAX's own start of several processes.

`jax.distributed.initialize` ends the program from C++, with a stack trace, when a process is
missing or comes twice. Here the processes meet first, over a plain socket at the same address, and
each of them gets the same Python error that says what is wrong:

1. Process 0 listens at the coordinator's port. Every process, 0 included, connects and says who it
    is:
   {"id": 3, "of": 8, "who": "host (pid 4711)"} and a newline.
2. Process 0 answers all of them as soon as all are there, or as soon as two do not agree: {"error":
    ""} or the fault.
3. Everybody hangs up, which leaves the port to JAX.
"""

import contextlib
import json
import os
import socket
import threading
import time

_PAUSE = 0.2  # seconds between two attempts to connect
_LATE = 3.0  # seconds that a fault is still told to those who come after it was found
_Callers = dict[int, str]


def meet(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns in each of `num_processes` processes when all of them have called it.

    Args:
        coordinator: "host:port"; the host must be the one of process 0, the port free there.
        timeout: seconds until those that have come give up.
    Raises:
        TimeoutError: nobody answers at `coordinator`, or some processes did not come (their numbers
            are named).
        ValueError: two processes have one number, or were told different numbers of processes.
        OSError: process 0 cannot listen at the port.
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
        raise (TimeoutError if fault.startswith("After") else ValueError)(fault)


def _listen(coordinator: str) -> socket.socket:
    port = split(coordinator)[1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(
            f"Process 0 cannot listen at port {port} of the coordinator {coordinator}: {error.strerror}. Another run, "
            f"or another process 0, may hold it: stop that one, or choose another port for all processes."
        ) from error


def _serve(listener: socket.socket, num_processes: int, deadline: float, timeout: float) -> None:
    """Takes calls until the answer is known, then gives it to everyone; a fault also to those who
    come later."""
    callers: _Callers = {}
    waiting: list[socket.socket] = []
    fault = ""
    while len(callers) < num_processes and not fault:
        # The server gives up a little before the callers, so that they hear who is missing.
        if (connection := _accept(listener, deadline - 1.0)) is None:
            fault = _absent(callers, num_processes, timeout)
        else:
            waiting.append(connection)
            fault = _take(connection, callers, num_processes)
    _answer(waiting, fault)
    late = time.monotonic() + _LATE
    while fault and (connection := _accept(listener, late)) is not None:
        _hear(connection)
        _answer([connection], fault)


def _accept(listener: socket.socket, until: float) -> socket.socket | None:
    listener.settimeout(max(until - time.monotonic(), 0.05))
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    connection.settimeout(5.0)
    return connection


def _answer(connections: list[socket.socket], fault: str) -> None:
    for connection in connections:
        with connection, contextlib.suppress(OSError):
            connection.sendall(json.dumps({"error": fault}).encode() + b"\n")


def _hear(connection: socket.socket) -> tuple[int, int, str] | None:
    """What a caller says: its number, how many it was told of, who it is; None where it says
    nothing sensible."""
    try:
        with connection.makefile("rb") as lines:
            said = json.loads(lines.readline(1000))
        return int(said["id"]), int(said["of"]), str(said["who"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _absent(callers: _Callers, num_processes: int, timeout: float) -> str:
    missing = [number for number in range(num_processes) if number not in callers]
    listed = ", ".join(map(str, missing[:10])) + (
        f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    )
    return (
        f"After {timeout:.0f} s {len(callers)} of {num_processes} processes are there; not come: number {listed}. "
        f"See what they printed, and whether every number from 0 to {num_processes - 1} was started."
    )


def _take(connection: socket.socket, callers: _Callers, num_processes: int) -> str:
    """Writes one caller down; returns what is wrong with it."""
    if (said := _hear(connection)) is None:
        return ""
    number, count, who = said
    if count != num_processes:
        return f"Process {number} on {who} was told of {count} processes, process 0 of {num_processes}."
    if number in callers:
        return f"Process {number} was started twice, on {callers[number]} and on {who}. Give each its own number."
    callers[number] = who
    return ""


def _call(
    coordinator: str, num_processes: int, process_id: int, deadline: float, timeout: float
) -> str:
    """Says who we are until somebody answers; returns the answer."""
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
        except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            # Not there yet, its name not known yet, or a former run that still holds the port.
            reason = (
                error
                if isinstance(error, OSError)
                else "something else than this run answers there"
            )
        time.sleep(_PAUSE)
    raise TimeoutError(
        f"Process {process_id} could not reach process 0 at the coordinator {coordinator} within {timeout:.0f} s "
        f"({reason}). Process 0 must run on that host, and its port must be open to the others."
    )


def split(coordinator: str) -> tuple[str, int]:
    """(host, port) of "host:port"; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is not of that form.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            f"The coordinator is written host:port, for instance 10.0.0.1:1234, not {coordinator!r}."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)
