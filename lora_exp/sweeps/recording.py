"""The recording process: it writes to MLflow, draws figures and writes reports while the launching process trains.

It is started before anything else is loaded, so that it imports MLflow and the libraries of the report while the
launching process imports torch. Requests are JSON lines of a pipe, carried out in their order by `records.Records`.
Only this process writes to MLflow. It ends with the launching process, whatever ends that one: two writers could
record a job twice. When it is killed itself, it is started again with the requests that it had not carried out.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.errors import LoraExpError, explained

if TYPE_CHECKING:
    from lora_exp.config.settings import TrackingSettings

log = logging.getLogger(__name__)

STARTS = 3  # of the process, before a request that kills it is given up
CLOSE_SECONDS = 3.0  # to wait for the end of an interrupted sweep in MLflow
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Recording:
    """The recording process, as the launching process sees it.

    Requests return at once, and never raise: `finish` and `report` wait, and raise what went wrong.
    """

    def __init__(self) -> None:
        self._process: int | None = None
        self._connection: Connection | None = None
        self._opened: dict[str, Any] | None = None
        self._asked: deque[dict[str, Any]] = deque()  # requests that are not carried out yet
        self._starts = 0
        self._error: Exception | None = None
        atexit.register(self.stop)

    def start(self, with_mlflow: bool) -> None:
        """Start the process, unless it runs; it imports its libraries, first MLflow if that is needed."""
        if self._process is not None:
            return
        own, other = socket.socketpair()
        self._process = _started(other.fileno(), with_mlflow)
        other.close()
        self._connection = Connection(own.detach())
        self._starts += 1

    def open(self, settings: TrackingSettings) -> None:
        """Record in this tracking store from now on; start the process if it does not run."""
        opened = {"tracking": vars(settings), "directory": str(Path.cwd())}
        self.start(settings.kind != "off")
        if opened != self._opened:
            self._opened = opened
            self._ask("open", **opened)

    def begin(self, sweep: Path, resumed: bool) -> None:
        """Open the MLflow parent run of the sweep in that folder."""
        self._ask("begin", sweep=str(sweep.absolute()), resumed=resumed)

    def record(self, folder: Path, sweep: Path | None, pictures: tuple[str, str] | None = None) -> None:
        """Record what a job's folder holds; draw its figures if `pictures` names its data set and the data root."""
        own = None if sweep is None else str(sweep.absolute())
        self._ask("record", folder=str(folder.absolute()), sweep=own, pictures=pictures)

    def report(self, sweep: Path, status: str, out: Path, claim: str | None, pictures: tuple[str, str]) -> str:
        """Write the report of a sweep that ended as `status` into `out`; return what to print.

        Records again what could not be recorded before. Raises LoraExpError when the report can't be written.
        """
        self._answers(None)
        if self._error is not None:
            log.warning("%s", self._error)
            self._error = None
        own, terminal = str(sweep.absolute()), sys.stdout.isatty()
        self._ask("report", sweep=own, status=status, out=str(out), claim=claim, pictures=pictures, terminal=terminal)
        return str(self.finish())

    def finish(self) -> Any:
        """Wait until all requests are carried out; return the answer to the last. Raises what one of them raised."""
        answer = self._answers(None)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return answer

    def close(self, sweep: Path) -> None:
        """Give up what is not carried out yet, close the parent run of an interrupted sweep, and end the process."""
        self._ask("close", sweep=str(sweep.absolute()))
        self._answers(CLOSE_SECONDS)
        self.stop()

    def stop(self) -> None:
        """End the process at once."""
        if self._process is not None and self._connection is not None:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            self._connection.close()
        self._process = self._connection = self._opened = None
        self._asked.clear()

    def _ask(self, request: str, **arguments: Any) -> None:
        self._asked.append({"request": request, **arguments})
        self._send(self._asked[-1])
        self._answers(0)

    def _send(self, message: dict[str, Any]) -> None:
        if self._connection is not None:
            try:
                self._connection.send_bytes(json.dumps(message).encode())
            except OSError:
                self._start_again()

    def _answers(self, seconds: float | None) -> Any:
        """Take answers until all requests are carried out, or until none arrives for so long; return the last one."""
        last = None
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
            last = answer.get("answer")
            if "why" in answer:
                self._error = self._error or _error(answer["why"], answer["code"])
        return last

    def _start_again(self) -> None:
        """Start the process again after its end, and ask again for what it left; give up after STARTS times."""
        asked, opened = [message for message in self._asked if message["request"] != "open"], self._opened
        self.stop()
        if self._starts >= STARTS:
            why = f"the process that records runs ended {STARTS} times; lora-exp sync FOLDER records what is missing"
            self._error = _error(why, 1)
            return
        log.warning("the process that records runs ended unexpectedly; it is started again")
        self.start(with_mlflow=opened is not None and opened["tracking"]["kind"] != "off")
        self._opened = opened
        for message in [{"request": "open", **(opened or {})}, *asked]:
            self._ask(message.pop("request"), **message)


def _error(why: str, code: int | None) -> Exception:
    """The error of a request: one line for the user, with the exit code; without a code a mistake in the program."""
    return RuntimeError(why) if code is None else LoraExpError(why, code)


@functools.cache
def recording() -> Recording:
    """The recording process of this process."""
    return Recording()


def serve(connection: Connection, with_mlflow: bool) -> None:
    """Carry out requests until the other end closes; import libraries while there are none."""
    from lora_exp.sweeps.records import Records, load_report, load_tracking

    def send(**message: Any) -> None:
        connection.send_bytes(json.dumps(message).encode())

    logging.getLogger().handlers = [_Forwarding(send)]
    records, waiting = Records(), deque[dict[str, Any]]()
    left = deque([load_tracking, load_report] if with_mlflow else [load_report])
    while True:
        if not waiting and left and not connection.poll():
            left.popleft()()
            continue
        while not waiting or connection.poll():
            try:
                waiting.append(json.loads(connection.recv_bytes()))
            except EOFError:
                return
        if waiting[-1]["request"] == "close":
            for _ in range(len(waiting) - 1):  # the process is to end within seconds
                waiting.popleft()
                send(answer=None)
        message = waiting.popleft()
        try:
            send(answer=getattr(records, message.pop("request"))(**message))
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


def _started(descriptor: int, with_mlflow: bool) -> int:
    """Start the process at the other end of a socket; return its number.

    It is a fork where its libraries are loaded already, else a new interpreter, which is forked before it has threads.
    """
    parent = os.getpid()
    if "mlflow" in sys.modules:
        if process := os.fork():
            return process
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            _main(descriptor, parent, with_mlflow)
        finally:
            os._exit(1)
    os.set_inheritable(descriptor, True)
    streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    command = [sys.executable, "-m", __name__, str(descriptor), str(parent), str(int(with_mlflow))]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=streams)


def _main(descriptor: int, parent: int, with_mlflow: bool) -> None:
    """Be the process: end with the parent, out of reach of its terminal."""
    os.setsid()  # Ctrl-C reaches the launching process alone
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.platform == "linux":  # elsewhere it ends at its next request
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # else it has ended already
        serve(Connection(descriptor), with_mlflow)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
