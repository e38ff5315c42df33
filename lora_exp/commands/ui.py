"""`lora-exp ui`: serve MLflow's UI on the store that runs are recorded in."""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lora_exp.child import end_with, signals_held_back
from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_settings
from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError

HOST = "127.0.0.1"
LOG = Path("cache") / "mlflow-server.log"
SECONDS_TO_START, SECONDS_TO_END = 120.0, 5.0


def main(arguments: Sequence[str]) -> int:
    """Serve MLflow's UI on the store that runs are recorded in, to this machine only."""
    parser = argparse.ArgumentParser(prog="lora-exp ui", description=main.__doc__)
    parser.add_argument("--port", type=int, default=5000, help=f"port on {HOST} (default 5000)")
    add_overrides(parser, "tracking.uri=sqlite:///other.db")
    options = parse(parser, arguments)
    return serve_ui(compose_settings(options.overrides).tracking, options.port)


def serve_ui(settings: TrackingSettings, port: int) -> int:
    """Print the addresses of the UI once it answers. For a sqlite store, serve it until an interrupt.

    Raises LoraExpError when the store can't be opened, the port can't be used, or the server ends.
    """
    if settings.kind == "server":
        from lora_exp.tracking.recorder import Recorder

        print("the tracking server has its own UI:")
        _print_pages(settings.uri.rstrip("/"), Recorder.open(settings).save_views())
        return 0
    _check_port(port)
    print("starting MLflow's server, about 10 seconds ...", flush=True)
    from lora_exp.tracking.recorder import Recorder

    try:
        recorder = Recorder.open(settings)
        with _server(recorder.settings.uri, port) as server:
            pages = recorder.save_views()  # while the server starts
            _wait_for(server, port)
            _print_pages(f"http://{HOST}:{port}", pages)
            print(f"Its log is in {LOG}. Ctrl-C ends it.", flush=True)
            server.wait()
            raise LoraExpError(f"MLflow's server has ended; {LOG} says why", 1)
    except KeyboardInterrupt:
        sys.exit(0)


def _print_pages(address: str, pages: Mapping[str, str]) -> None:
    print(f"sweeps   {address}/{pages['sweep']}")
    print(f"runs     {address}/{pages['run']}")
    print(
        f"Other ways in, such as {address} alone, land in MLflow's GenAI view, which hides most of a run.", flush=True
    )


def _check_port(port: int) -> None:
    """Raise LoraExpError where no server can listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise LoraExpError(f"--port {port}: can't be used ({error}); choose another") from error


@contextlib.contextmanager
def _server(store: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A block in which the server runs, and starts. It ends with this process, whatever ends that."""
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--host", HOST, "--port", str(port)]
    LOG.parent.mkdir(parents=True, exist_ok=True)
    server = None
    try:
        with LOG.open("wb") as log, signals_held_back():
            server = subprocess.Popen(
                [*command, "--workers", "1"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # `_end` ends all of it; Ctrl-C reaches this process alone
                preexec_fn=functools.partial(end_with, os.getpid(), signal.SIGTERM),
            )
        yield server
    finally:
        if server is not None:
            _end(server)


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers. Raises LoraExpError when it ends, or does not in SECONDS_TO_START."""
    deadline = time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, port, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().read() == b"OK":
                return
        time.sleep(0.1)
    raise LoraExpError(f"MLflow's server did not start; {LOG} says why", 1)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(SECONDS_TO_END)
