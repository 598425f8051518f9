"""A roll call before JAX starts several processes.

`jax.distributed.initialize` ends the program from C++, with a stack trace, when a process is
missing or comes twice. Here the processes meet first, over a plain socket at the same address, and
each of them gets the same Python error that says what is wrong:

1. Process 0 listens on the coordinator's address and port. Every process, 0 included, connects and
   says who it is: {"id": 3, "of": 8, "who": "host (pid 4711)", "call": "..."} and a newline. The
   call is a random text, by which a process that calls again is known.
2. As soon as all processes have come, or two of them do not agree, process 0 answers each of them:
   {"error": ""} or the fault.
3. All hang up, which leaves the port to JAX.
"""

import contextlib
import ipaddress
import json
import os
import selectors
import socket
import threading
import time
import uuid
from typing import NamedTuple

from videomar_jax.checks import UserError
from videomar_jax.io.log import log

_PAUSE = 0.2
"""Seconds between two attempts to connect."""
_LATE = 3.0
"""Seconds for which a fault is still reported to processes that come after it was found."""
_MARGIN = 1.0
"""Seconds by which process 0 gives up before the others, so that they learn who is missing."""
_CALLER_TIMEOUT = 5.0
"""Seconds for a process that has connected to say who it is."""
_MOST_VISITORS = 256
"""Connections that have not said yet who they are; with more, the oldest is closed."""
_LONGEST_LINE = 1000
"""Bytes that a process needs at most to say who it is."""
_LONGEST_ANSWER = 10_000
"""Bytes of the longest answer."""


class _Caller(NamedTuple):
    """What a process says when it connects."""

    number: int
    count: int  # of processes, as it was started with
    who: str
    call: str


_Callers = dict[int, _Caller]


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
            listener = stack.enter_context(_listen(coordinator, deadline, timeout))
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


def own_address(coordinator: str) -> str:
    """Which address of this machine, the coordinator's, to listen on.

    "" stands for all of them: the name or address is none of this machine's own (behind NAT), or it
    means the loopback interface here (/etc/hosts of many systems) and, as others must reach it,
    another one elsewhere.

    Raises:
        OSError: the name is not known, perhaps not yet.
    """
    host, port = split(coordinator)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(where[0]) for family, *_, where in found if family == socket.AF_INET]
    addresses += [str(where[0]) for family, *_, where in found if family == socket.AF_INET6]
    for address in addresses:
        misleads = _is_loopback(address) and host != "localhost" and not _is_loopback(host)
        if not misleads and _is_ours(address):
            return address
    return ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_ours(address: str) -> bool:
    try:
        socket.create_server((address, 0), family=_family(address)).close()
    except OSError:
        return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listen(coordinator: str, deadline: float, timeout: float) -> socket.socket:
    port = split(coordinator)[1]
    address = _wait_for_address(coordinator, deadline, timeout)
    if not address:
        log.warning(
            "the coordinator %s is not, as seen from here, an address of this machine: listening "
            "on all of them, so port %d must be closed to strangers",
            coordinator,
            port,
        )
    all_of_both = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if all_of_both else _family(address)
    try:
        return socket.create_server(
            (address, port), family=family, backlog=1024, dualstack_ipv6=all_of_both
        )
    except OSError as error:
        raise OSError(
            f"Process 0 cannot listen on port {port} of the coordinator {coordinator}: "
            f"{error.strerror}. Another run, or another process 0, may use it: stop that one, or "
            f"choose another port for all processes."
        ) from error


def _wait_for_address(coordinator: str, deadline: float, timeout: float) -> str:
    """`own_address`; clusters make names known a while after a process has started."""
    while True:
        try:
            return own_address(coordinator)
        except OSError as error:
            if time.monotonic() + _PAUSE > deadline:
                raise _unreachable(coordinator, 0, timeout, error) from error
        time.sleep(_PAUSE)


def _serve(listener: socket.socket, num_processes: int, deadline: float, timeout: float) -> None:
    """Takes calls until the answer is known and gives it to all; a fault also to late callers."""
    callers: _Callers = {}
    waiting: list[socket.socket] = []
    fault = ""
    visitors = _Visitors(listener)
    with contextlib.closing(visitors):
        while len(callers) < num_processes and not fault:
            found = visitors.next_caller(deadline - _MARGIN)
            if found is None:
                fault = _absent(callers, num_processes, timeout)
            else:
                connection, caller = found
                waiting.append(connection)
                fault = _register(caller, callers, num_processes)
        for connection in waiting:
            _answer(connection, fault)
        late = time.monotonic() + _LATE
        while fault:
            found = visitors.next_caller(late)
            if found is None:
                break
            _answer(found[0], fault)


class _Visitors:
    """Whoever has connected and not said yet who it is.

    Anybody may: port scanners, other programs. Those that say something else, too much, or nothing
    for a while are sent away, and none makes another wait.
    """

    def __init__(self, listener: socket.socket):
        listener.setblocking(False)
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        # In the order in which they came.
        self._said: dict[socket.socket, bytes] = {}
        self._until: dict[socket.socket, float] = {}

    def next_caller(self, until: float) -> tuple[socket.socket, _Caller] | None:
        """The next process of ours, and its connection; None if none says who it is until then."""
        while time.monotonic() < until:
            for connection, limit in list(self._until.items()):
                if limit < time.monotonic():
                    self._dismiss(connection)
            for key, _ in self._selector.select(min(until - time.monotonic(), _PAUSE)):
                if key.fileobj is self._listener:
                    self._welcome()
                    continue
                connection = key.fileobj
                # One that came after it may have taken its place.
                if not isinstance(connection, socket.socket) or connection not in self._said:
                    continue
                caller = self._hear(connection)
                if caller is not None:
                    self._forget(connection)
                    return connection, caller
        return None

    def close(self) -> None:
        """Sends all away."""
        for connection in list(self._said):
            self._dismiss(connection)
        self._selector.close()

    def _welcome(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if len(self._said) >= _MOST_VISITORS:
                self._dismiss(next(iter(self._said)))
            self._said[connection] = b""
            self._until[connection] = time.monotonic() + _CALLER_TIMEOUT
            self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> _Caller | None:
        """The caller, once a visitor turns out to be one."""
        try:
            new = connection.recv(_LONGEST_LINE)
        except BlockingIOError:
            return None
        except OSError:
            new = b""
        said = self._said[connection] + new
        line, newline, _ = said.partition(b"\n")
        caller = _parse(line) if newline and len(line) < _LONGEST_LINE else None
        if caller is None and (newline or not new or len(said) > _LONGEST_LINE):
            self._dismiss(connection)
        else:
            self._said[connection] = said
        return caller

    def _forget(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._said[connection], self._until[connection]

    def _dismiss(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()


def _answer(connection: socket.socket, fault: str) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_CALLER_TIMEOUT)
        connection.sendall(json.dumps({"error": fault}).encode() + b"\n")


def _parse(line: bytes) -> _Caller | None:
    """What a caller says; None for one that is not a process of a run."""
    try:
        said = json.loads(line)
        number, count, who, call = said["id"], said["of"], said["who"], said["call"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(number) is not int or type(count) is not int or type(who) is not str:
        return None
    if not 0 <= number < count or not who.isprintable():
        return None
    return _Caller(number, count, who, str(call))


def _register(caller: _Caller, callers: _Callers, num_processes: int) -> str:
    """Adds a caller to the list; returns what is wrong with it, or ""."""
    if caller.count != num_processes:
        return (
            f"Process {caller.number} on {caller.who} was started with {caller.count} processes, "
            f"process 0 with {num_processes}."
        )
    # A process whose connection was lost calls again.
    before = callers.setdefault(caller.number, caller)
    if before.call != caller.call:
        return (
            f"Process {caller.number} was started twice, on {before.who} and on "
            f"{caller.who}. Give each its own number."
        )
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
    said = {"id": process_id, "of": num_processes, "who": who, "call": uuid.uuid4().hex}
    hello = json.dumps(said).encode() + b"\n"
    reason: object = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(split(coordinator), timeout=left) as connection:
                connection.settimeout(max(deadline - time.monotonic(), 0.05))
                connection.sendall(hello)
                with connection.makefile("rb") as lines:
                    return str(json.loads(lines.readline(_LONGEST_ANSWER))["error"])
        except OSError as error:
            # Not there yet, its name not known yet, or an earlier run that still uses the port.
            reason = error
        except (ValueError, KeyError, TypeError, RecursionError):
            reason = "something other than this run answers there"
        time.sleep(_PAUSE)
    raise _unreachable(coordinator, process_id, timeout, reason)


def _unreachable(coordinator: str, process_id: int, timeout: float, reason: object) -> TimeoutError:
    return TimeoutError(
        f"Process {process_id} could not reach process 0 at the coordinator {coordinator} within "
        f"{timeout:.0f} s ({reason}). Process 0 must run on that host, and its port must be open "
        f"to the others."
    )
