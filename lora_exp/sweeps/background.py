"""A process that carries out requests beside the launching process, such as what is recorded while others train.

It is started before anything else is loaded, so that it imports its libraries while the launching process imports
torch. Requests and answers are JSON lines of a socket. The process ends with the launching process, whatever ends that
one. When it is killed itself, it is started again with the requests that it had not carried out.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from lora_exp.child import end_with, let_go, signals_held_back
from lora_exp.errors import LoraExpError, explained

log = logging.getLogger(__name__)

STARTS = 3  # of a process, before a request that kills it is given up
URGENT = "close"  # the request that drops those before it which are not carried out
GRACE = 1.0  # so many seconds after it came


class Background:
    """A process, as the launching process sees it, that calls the methods of an object made by `module:factory`.

    The object has a method `load`, which imports its libraries: called while there is no request. `library` is the
    largest of them: where it is loaded already, the process is a fork instead of a new interpreter.
    `ask` returns at once and never raises; `finish` waits, and raises what went wrong.
    """

    def __init__(self, factory: str, library: str) -> None:
        self._factory, self._library = factory, library
        self._process: int | None = None
        self._connection: Connection | None = None
        self._first: dict[str, Any] | None = None
        self._asked: deque[dict[str, Any]] = deque()  # requests that are not carried out yet
        self._starts = 0
        self._error: Exception | None = None
        self._answer: Any = None  # to the last request that was carried out
        atexit.register(self.stop)

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._process is None:
            own, other = socket.socketpair()
            self._process = _started(other.fileno(), self._factory, self._library)
            other.close()
            self._connection = Connection(own.detach())
            self._starts += 1

    def ask_first(self, request: str, **arguments: Any) -> None:
        """Like `ask`, for the request that sets up the object; it is asked again after a new start, and not twice."""
        message = {"request": request, **arguments}
        if message != self._first or self._process is None:
            self._first = message
            self._ask(message)

    def ask(self, request: str, **arguments: Any) -> None:
        """Have a method of the object called, with arguments that JSON can hold, after those asked before."""
        self._ask({"request": request, **arguments})

    def finish(self, seconds: float | None = None) -> Any:
        """Wait until all requests are carried out, or until none ends for so long; return the answer to the last one.

        Raises what the first of them raised, as a LoraExpError or, for a mistake in the program, a RuntimeError.
        """
        self._take_answers(seconds)
        error, self._error = self._error, None
        answer, self._answer = self._answer, None
        if error is not None:
            raise error
        return answer

    def stop(self) -> None:
        """End the process at once."""
        if self._process is not None and self._connection is not None:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            self._connection.close()
        self._process = self._connection = None
        self._asked.clear()

    def _ask(self, message: dict[str, Any]) -> None:
        self.start()
        self._asked.append(message)
        assert self._connection is not None
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            self._start_again()
        self._take_answers(0)

    def _take_answers(self, seconds: float | None) -> None:
        """Take answers until all requests are carried out, or until none arrives for so long."""
        while self._asked and self._connection is not None and self._connection.poll(seconds):
            try:
                answer = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                self._start_again()
                continue
            if "log" in answer:
                logging.getLogger(answer["log"]).log(answer["level"], "%s", answer["text"])
                continue
            self._asked.popleft()
            self._answer = answer.get("answer")
            if "why" in answer:
                why, code = answer["why"], answer["code"]
                self._error = self._error or (RuntimeError(why) if code is None else LoraExpError(why, code))

    def _start_again(self) -> None:
        """Start the process again after its end, and ask again for what it left; give up after STARTS times."""
        asked = [message for message in self._asked if message != self._first]
        self.stop()
        if self._starts >= STARTS:
            self._error = LoraExpError(
                f"a process that writes records ended {STARTS} times; `lora-exp sync` records what is missing", 1
            )
            return
        log.warning("a process that writes records ended unexpectedly; it is started again")
        for message in [*([] if self._first is None else [self._first]), *asked]:
            self._ask(message)


def serve(connection: Connection, factory: str) -> None:
    """Carry out requests until the other end closes; import libraries while there are none."""
    module, _, name = factory.partition(":")
    target = getattr(importlib.import_module(module), name)()

    def send(**message: Any) -> None:
        connection.send_bytes(json.dumps(message).encode())

    logging.getLogger().handlers = [_Forwarding(send)]
    waiting: deque[dict[str, Any]] = deque()
    is_loaded = False
    deadline = math.inf  # of the requests before an urgent one
    while True:
        if not waiting and not is_loaded and not connection.poll():
            target.load()
            is_loaded = True
        while not waiting or connection.poll():
            try:
                waiting.append(json.loads(connection.recv_bytes()))
            except EOFError:
                return
        if waiting[-1]["request"] == URGENT:  # the process is to end within seconds
            deadline = min(deadline, time.monotonic() + GRACE)
            while len(waiting) > 1 and time.monotonic() > deadline:
                waiting.popleft()
                send(answer=None)
        message = waiting.popleft()
        try:
            send(answer=getattr(target, message.pop("request"))(**message))
        except (LoraExpError, OSError) as error:
            mendable = explained(error)
            send(why=str(mendable), code=mendable.exit_code)
        except Exception:
            send(why=traceback.format_exc(), code=None)


class _Forwarding(logging.Handler):
    """Log in the launching process, where Hydra has set up the logs."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self._send_message = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_message(log=record.name, level=record.levelno, text=record.getMessage())


def _started(descriptor: int, factory: str, library: str) -> int:
    """Start the process at the other end of a socket; return its number."""
    parent = os.getpid()
    if library in sys.modules:
        with signals_held_back():
            process = os.fork()
        if process:
            return process
        try:
            os.setpgid(0, 0)
            os.dup2(2, 1)
            let_go(kept={1, 2, descriptor})
            _main(descriptor, parent, factory)
        finally:
            os._exit(1)
    os.set_inheritable(descriptor, True)
    streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    command = [sys.executable, "-m", __name__, str(descriptor), str(parent), factory]
    # In a process group of its own, so that Ctrl-C and the end of the terminal don't reach it while it starts.
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=streams, setpgroup=0)


def _main(descriptor: int, parent: int, factory: str) -> None:
    """Be the process."""
    end_with(parent)
    serve(Connection(descriptor), factory)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
