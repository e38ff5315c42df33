"""`lora-exp ui`: serve MLflow's UI on the store that runs are recorded in."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_settings
from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.tracking.recorder import Recorder


def main(arguments: Sequence[str]) -> int:
    """Serve MLflow's UI on the store that runs are recorded in, to this machine only."""
    parser = argparse.ArgumentParser(prog="lora-exp ui", description=main.__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default 5000)")
    add_overrides(parser, "tracking.uri=sqlite:///other.db")
    options = parse(parser, arguments)
    return serve_ui(compose_settings(options.overrides).tracking, options.port)


def serve_ui(settings: TrackingSettings, port: int) -> int:
    """Print the address of the UI. For a sqlite store, become the process that serves it.

    Raises LoraExpError when the store can't be opened or the port can't be used.
    """
    recorder = Recorder.open(settings)
    page = recorder.runs_page()
    if settings.kind == "server":
        print(f"the tracking server has its own UI: {settings.uri.rstrip('/')}/{page}")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise LoraExpError(f"--port {port}: can't be used ({error}); choose another") from error
    print(f"open http://127.0.0.1:{port}/{page} in some seconds; Ctrl-C ends the server", flush=True)
    store = ["--backend-store-uri", recorder.settings.uri]
    command = [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--port", str(port)]
    # Signals to this process then reach the server.
    os.execv(sys.executable, [*command, "--workers", "1"])  # noqa: S606
