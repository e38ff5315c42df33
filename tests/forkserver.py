"""Run commands of lora-exp in forks of one process that has loaded the libraries, so that no command loads them.

A command spends most of its time on imports: torch, MLflow, pandas, matplotlib. `start` runs it in a fork of a server
that has imported them and done nothing else; each process of pytest has one. The fork is a process of its own: its
working folder, environment, streams, signals and exit code are those that an interpreter would have, and it imports
`sitecustomize` from its PYTHONPATH. What is decided before the first import is that of the server: encodings, threads
of the math libraries, options of Python. Where the environment asks for another of these, `start` starts an interpreter
instead. A test that is about start-up, imports, closed streams or the installed package starts one itself.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import re
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lora_exp.tracking.connection import ENVIRONMENT

ROOT = Path(__file__).parent.parent
COMMANDS = [path.stem for path in (ROOT / "lora_exp" / "commands").glob("[a-z]*.py")]
LOADED = (
    *("lora_exp.executors.choice", "lora_exp.report.search_section", "lora_exp.report.terminal"),
    *("lora_exp.report.write", "lora_exp.sweeps.launcher", "lora_exp.sweeps.search", "lora_exp.sweeps.sweep"),
    *("lora_exp.tracking.delivery", "lora_exp.tracking.reader", "lora_exp.tracking.registry"),
    *(f"lora_exp.commands.{name}" for name in COMMANDS),
    *("alembic.config", "hydra._internal.core_plugins.basic_launcher", "hydra._internal.utils", "mlflow.pyfunc"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_workspace_store"),
    *("matplotlib.backends.backend_agg", "optuna.samplers", "optuna.storages", "pandas.io.formats.csvs"),
    *("plotly.offline", "pyarrow.parquet", "sqlalchemy.dialects.sqlite", "statsmodels.stats.proportion"),
    *("torch._dynamo", "torch.optim"),
)
# Environment variables that are read before or during these imports.
READ_AT_START = re.compile(r"PYTHON(?!PATH$)|LANG|LC_|HOME$|TMPDIR$|XDG_|OMP_|MKL_|OPENBLAS_|TORCH_|MPL|MLFLOW_")
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 24, 1, 2
PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT


class Command:
    """A forked command, with what tests use of `subprocess.Popen`."""

    def __init__(
        self, status: socket.socket, arguments: Sequence[str], out: IO[str] | None, err: IO[str] | None
    ) -> None:
        self.args, self.stdout, self.stderr = arguments, out, err
        self.returncode: int | None = None
        self._status, self._told = status, status.makefile(encoding="ascii")
        self._readers: dict[str, threading.Thread] = {}
        self._read: dict[str, str] = {}
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        """Return the exit code, if the command has ended."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end; return its exit code."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read what the command writes until it ends."""
        until = None if timeout is None else time.monotonic() + timeout
        streams = {"out": self.stdout, "err": self.stderr}
        if not self._readers:
            for name, stream in streams.items():
                if stream is not None:
                    self._readers[name] = threading.Thread(target=self._read_all, args=(name, stream), daemon=True)
                    self._readers[name].start()
        for reader in self._readers.values():
            reader.join(None if until is None else max(0.0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        return self._read.get("out", ""), self._read.get("err", "")

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read_all(self, name: str, stream: IO[str]) -> None:
        with stream:
            self._read[name] = stream.read()

    def _end(self) -> None:
        code = self._told.readline()
        assert code, "the server of forked commands has died"
        self.returncode = int(code)
        self._told.close()
        self._status.close()


Process = Command | subprocess.Popen[str]


def start(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    stdout: int | IO[Any] | None = PIPE,
    stderr: int | IO[Any] | None = PIPE,
    new_session: bool = False,
    file_size: int | None = None,
    bound: bool = False,
) -> Process:
    """Start `lora-exp` with these arguments in a folder.

    `file_size` limits the bytes of each file that it writes. Under `bound` permissions bind root too.
    """
    environment = dict(os.environ if environment is None else environment)
    request = {
        "arguments": list(arguments),
        "folder": str(folder),
        "environment": environment,
        "session": new_session,
        "file_size": file_size,
        "bound": bound,
    }
    if sys.platform != "linux" or not _server().offers(environment):
        return subprocess.Popen(
            [sys.executable, "-m", "lora_exp", *arguments],
            cwd=folder,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            start_new_session=new_session,
            preexec_fn=lambda: _limit(request),
        )
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as ends, theirs:
        files: list[IO[str] | None] = []
        numbers: list[int] = []
        for number, given in ((1, stdout), (2, stderr)):
            file = None
            if given == PIPE:
                reading, writing = os.pipe()
                ends.callback(os.close, writing)
                file = os.fdopen(reading, encoding="utf-8")
            elif given == STDOUT:
                writing = numbers[0]
            else:
                writing = number if given is None else given if isinstance(given, int) else given.fileno()
            files.append(file)
            numbers.append(writing)
        socket.send_fds(_server().channel, [b"c"], [*numbers, theirs.fileno()])
    ours.sendall(json.dumps(request).encode())
    ours.shutdown(socket.SHUT_WR)
    return Command(ours, arguments, *files)


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run `lora-exp` with these arguments in a folder, and return what it printed."""
    process = start(arguments, folder, environment, **how)
    out, err = process.communicate(timeout=300)
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out or "", err or "")


class _Server:
    """The process that forks, and the end of the socket that it listens to. It ends when this process does."""

    def __init__(self) -> None:
        self.environment = ENVIRONMENT | dict(os.environ)  # commands set the former before they import MLflow
        self.channel, theirs = socket.socketpair()
        with theirs:
            # Pipes are what most commands write to, and streams are set up for what is there at the start.
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                cwd=ROOT,
                env=self.environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                stdin=subprocess.DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.end)

    def end(self) -> None:
        """End the process, and with it the commands that still run."""
        self.channel.close()
        self.process.wait()

    def offers(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork finds what an interpreter would that is started in this environment."""
        names = {name for name in {*environment, *self.environment} if READ_AT_START.match(name)}
        asked = {**ENVIRONMENT, **environment}
        return all(asked.get(name) == self.environment.get(name) for name in names)


_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        return _made_server()


@functools.cache
def _made_server() -> _Server:
    return _Server()


def _serve(channel: socket.socket) -> tuple[list[int], socket.socket]:
    """Fork a process for each request, and report its process id and exit code.

    Returns in the forked processes only: their standard streams, and the socket that holds the request.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        server = os.getpid()
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    pid, status = key.data
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(OSError), status:  # nobody may want to know
                        status.sendall(f"{code}\n".encode())
                    continue
                asked, numbers, *_ = socket.recv_fds(channel, 1, 3)
                if not asked:  # the tests have ended, and so end all commands (PR_SET_PDEATHSIG)
                    os._exit(0)
                *streams, last = numbers
                pid = os.fork()
                if pid == 0:
                    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                    if os.getppid() != server:
                        os._exit(1)
                    for other in selector.get_map().values():
                        if other.data is not None:
                            os.close(other.fd)
                            other.data[1].close()
                    channel.close()
                    return streams, socket.socket(fileno=last)
                for number in streams:
                    os.close(number)
                status = socket.socket(fileno=last)
                with contextlib.suppress(OSError):
                    status.sendall(f"{pid}\n".encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _become(streams: list[int], status: socket.socket) -> None:
    """Take over what a command is given: streams, folder, environment, signals."""
    with status, status.makefile("rb") as sent:
        request = json.load(sent)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [str(Path.cwd()), *paths, *(path for path in sys.path if path not in paths)]
    sys.argv[1:] = request["arguments"]
    _limit(request)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def _limit(request: Mapping[str, Any]) -> None:
    """Limit what this process may do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background of a script it would be ignored
    if (size := request["file_size"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if request["bound"] and os.geteuid() == 0:
        _drop_privileges(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)


def _drop_privileges(*privileges: int) -> None:
    """Take these capabilities from root, for this process and all that it starts."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones: the lower 32, and the others
    assert _libc().capget(header, held) == 0
    for privilege in privileges:
        assert _libc().prctl(PR_CAPBSET_DROP, privilege, 0, 0, 0) == 0
        for at in range(3):
            held[at] &= ~(1 << privilege)
    assert _libc().capset(header, held) == 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Import, fork, and in a fork be `python -m lora_exp`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands, and for the tests, whose end ends this
    del sys.path[0]  # the folder of this file
    _libc()
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))
    code = _code_of_command()
    # As an interpreter ends, but for the second that it takes to release what was loaded.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _code_of_command() -> int:
    """Run `python -m lora_exp` in this process; return its exit code."""
    try:
        runpy.run_module("lora_exp", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
