"""A worker process of `processes.py`: trains one pack after another, told through a socket that it was given.

python -m lora_exp.executors.pack_worker DESCRIPTOR
"""

from __future__ import annotations

import json
import signal
import sys
from multiprocessing.connection import Connection

from lora_exp.executors.remote import PackTask
from lora_exp.executors.worker import trained_into_store


def serve(connection: Connection) -> None:
    """Answer tasks until the other end is closed."""
    while True:
        try:
            task = PackTask(**json.loads(connection.recv_bytes()))
        except (EOFError, ConnectionError):
            return
        why = trained_into_store(task, lambda steps: _send(connection, {"steps": steps}))
        _send(connection, {"why": why})


def _send(connection: Connection, message: dict[str, object]) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    # Ctrl-C reaches the launching process, which ends its workers; they end by themselves when it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    serve(Connection(int(sys.argv[1])))
