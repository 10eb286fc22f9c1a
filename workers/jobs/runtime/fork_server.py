"""Fork server: starts processes in milliseconds from one that has imported everything.

A fork server is asked over an inherited socket to fork and to call a module's ``forked`` in the
child. It answers with the pid, and later with how the child ended. It has one thread and holds no
secret, so a child starts without secrets: the server's environment is a fixed selection
(``template.environment``), and every descriptor but the three standard ones and those sent along
is closed before the child's code runs. The socket has no path, so only processes that inherited it
can send requests.

The children share the layout of their address space with the server. They share no memory that
any of them writes: what one reads from an upload no other sees.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

from service.contract.processes import die_with_parent

__all__ = ["ForkServer", "ForkServerLost", "Forked", "serve"]

logger = logging.getLogger(__name__)

#: Longest message: arguments and an environment. Most descriptors that come along.
MESSAGE_BYTES, DESCRIPTORS = 2**16, 4
#: Seconds that a fork may take on a busy machine before the caller starts its child otherwise.
ANSWER_S = 10.0
PR_SET_NAME = 15


class ForkServerLost(RuntimeError):
    """The fork server does not answer, or cannot fork. A child that it had is ended with it."""


class ForkServer:
    """The caller's end. One child at a time; ``close`` ends the server and the child it has.

    ``pid`` is the server's, 0 until it is ready; ``lost`` once it is known to be gone.
    """

    def __init__(
        self,
        control: socket.socket,
        process: subprocess.Popen[bytes] | None = None,
        copy: int | None = None,
    ) -> None:
        self._control = control
        self._process = process
        #: The pid of a server that was forked from this process and not yet waited for.
        self._copy = copy
        self.pid = 0
        self.lost = False

    @classmethod
    def start(
        cls, command: Callable[[int], Sequence[str]], environment: Mapping[str, str]
    ) -> ForkServer:
        """A process of its own that calls ``serve``; ``command`` gets the socket's descriptor.

        Call it from the main thread: the death signal follows the thread that forked.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                command(theirs.fileno()),
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return cls(ours, process)

    @classmethod
    def beside(cls, name: str, closing: Sequence[int]) -> ForkServer:
        """A copy of this process as it is now: single-threaded, before it learns any secret.

        The copy dies with this process; it closes the descriptors ``closing``. ``name`` is what
        ``ps`` calls it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        copy = os.fork()
        if copy == 0:
            status = 1
            try:
                die_with_parent(parent)
                _call(name)
                for descriptor in (*closing, ours.detach()):
                    os.close(descriptor)
                serve(theirs)
                status = 0
            except BaseException:  # noqa: BLE001 - nothing may return into the parent's frames
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()
        return cls(ours, copy=copy)

    def ready(self, timeout_s: float) -> bool:
        """Whether it has imported everything; waits for that at most so long."""
        if not self.pid:
            try:
                answer = self._receive(timeout_s)
            except ForkServerLost:
                return False
            if answer is None:
                return False
            self.pid = int(answer["ready"])
        return True

    def fork(
        self, name: str, module: str, arguments: Sequence[str], descriptors: Sequence[int] = ()
    ) -> Forked:
        """Call ``module.forked(arguments, descriptors)`` in a new process, session and group.

        ``name`` is what ``ps`` calls it.

        What it answers is the process' exit status. Raises ForkServerLost: nothing was started.
        """
        if not self.ready(0):
            raise ForkServerLost("the fork server is not ready")
        request = {"name": name, "module": module, "arguments": list(arguments)}
        message = json.dumps(request).encode()
        if len(message) > MESSAGE_BYTES:
            raise ForkServerLost(f"a message of {len(message)} bytes is too long")
        try:
            socket.send_fds(self._control, [message], list(descriptors))
        except OSError as error:
            raise self._gone(error) from error
        until = time.monotonic() + ANSWER_S
        while True:
            answer = self._receive(until - time.monotonic())
            if answer is None:
                # It may be about to fork: two children would do the same work in one folder.
                self.close()
                raise self._gone("no answer")
            if "refused" in answer:
                raise ForkServerLost(str(answer["refused"]))
            if "forked" in answer:
                return Forked(int(answer["forked"]), self._control)
            # The end of an earlier child, which its caller peeked at but did not read.

    def close(self) -> None:
        """End the server, and the child that it has."""
        self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._copy is not None:
            copy, self._copy = self._copy, None
            os.kill(copy, signal.SIGKILL)
            os.waitpid(copy, 0)

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when the time is up."""
        try:
            if not _readable(self._control, timeout_s):
                return None
            data = self._control.recv(MESSAGE_BYTES)
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            raise self._gone("end of file")
        return cast(dict[str, Any], json.loads(data))

    def _gone(self, why: object) -> ForkServerLost:
        self.lost = True
        return ForkServerLost(f"the fork server is gone: {why}")


class Forked:
    """A child of a fork server: as much of subprocess.Popen as its callers need.

    The server keeps the ended child until it is asked for the next: ``pid`` means no other
    process until then.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._raw: int | None = None

    def raw(self, timeout_s: float | None) -> int | None:
        """The wait status as os.wait4 tells it; None while the child runs. Raises ForkServerLost.

        An exception from a signal handler loses nothing: the message is only peeked at.
        """
        if self._raw is None:
            try:
                if not _readable(self._control, timeout_s):
                    return None
                data = self._control.recv(MESSAGE_BYTES, socket.MSG_PEEK)
            except OSError as error:
                raise ForkServerLost(f"the fork server is gone: {error}") from error
            if not data:
                raise ForkServerLost("the fork server ended, and its child with it")
            self._raw = int(json.loads(data)["ended"])
        return self._raw

    def poll(self) -> int | None:
        """Exit status, negative after a signal; None while the child runs."""
        raw = self.raw(0)
        return None if raw is None else os.waitstatus_to_exitcode(raw)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired, ForkServerLost."""
        raw = self.raw(timeout)
        if raw is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return os.waitstatus_to_exitcode(raw)


def serve(control: socket.socket) -> None:
    """Fork whenever a message asks for it, until the other end of ``control`` is closed."""
    parent = os.getpid()
    try:
        control.send(json.dumps({"ready": parent}).encode())
    except ConnectionError:
        return  # the other end was closed while this process imported
    last = 0
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, DESCRIPTORS)
        except ConnectionError:
            message, descriptors = b"", []
        if last:
            os.waitpid(last, 0)
            last = 0
        if not message:
            return
        request = json.loads(message)
        try:
            if len(os.listdir("/proc/self/task")) != 1:
                raise OSError("the fork server has more than one thread")
            pid = os.fork()
        except OSError as error:
            answer: dict[str, object] = {"refused": str(error)}
        else:
            if pid == 0:
                _child(request, descriptors, parent)
            last = pid
            answer = {"forked": pid}
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            control.send(json.dumps(answer).encode())
            if last:
                control.send(json.dumps({"ended": _watch(control, last)}).encode())
        except BrokenPipeError:
            logger.debug("child %d ended without a caller", last)


def _watch(control: socket.socket, pid: int) -> int:
    """Wait for a child and leave it a zombie; kill it when the other end says anything or goes."""
    watched = os.pidfd_open(pid)
    try:
        ready = select.poll()
        ready.register(watched, select.POLLIN)
        ready.register(control, select.POLLIN)
        if all(descriptor != watched for descriptor, _ in ready.poll()):
            for kill in (os.killpg, os.kill):
                try:
                    kill(pid, signal.SIGKILL)
                except ProcessLookupError:  # no group yet
                    continue
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        os.close(watched)
    assert ended is not None
    return ended.si_status << 8 if ended.si_code == os.CLD_EXITED else ended.si_status


def _child(request: Mapping[str, Any], descriptors: Sequence[int], parent: int) -> NoReturn:
    """What a forked child does: alone in its session, with nothing open but what it was given."""
    status = 1
    try:
        os.setsid()
        die_with_parent(parent)
        _close_all_but(descriptors)
        _call(request["name"])
        module = importlib.import_module(request["module"])
        status = module.forked(request["arguments"], descriptors)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter reports it; nothing may return
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _call(name: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _close_all_but(kept: Sequence[int]) -> None:
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _readable(control: socket.socket, timeout_s: float | None) -> bool:
    ready = select.poll()
    ready.register(control, select.POLLIN)
    return bool(ready.poll(None if timeout_s is None else max(0.0, 1000 * timeout_s)))
