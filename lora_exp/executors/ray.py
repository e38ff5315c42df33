"""A pool of workers on a Ray cluster: one that runs already, or one that is started on this machine for a sweep.

A base is put into Ray's object store once, and Ray copies it once to each node that trains on it. Results return with
the end of each pack, so only the launching process writes to the store, and nodes need no common file system. Ray's own
retries are off: `remote.py` decides what is retried, and how often, for every pool.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_exp.config.settings import ExecutorSettings
from lora_exp.errors import LoraExpError
from lora_exp.executors.ray_end import cleared_at_the_end
from lora_exp.executors.remote import PackEnd, Resources, WorkerPool, loaded
from lora_exp.numerics import PORTABLE
from lora_exp.storage.store import Store
from lora_exp.training.executor import Files, PackTask
from lora_exp.training.halving import stored_checkpoints
from lora_exp.training.loop import Progress

log = logging.getLogger(__name__)

# Send no usage statistics. Leave the GPUs visible to a task without any as they are, and do not warn about it.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# The first makes Ray listen on 127.0.0.1 only, as it does by default on Windows and macOS.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# Seconds after which a sweep ends if no node has room for any of its packs.
PATIENCE = 60.0


class RayPool(WorkerPool):
    """Workers of the cluster at `settings.address` (None: a Ray of this machine, started and stopped with the sweep).

    `settings.workers` bounds how many packs train at a time (None: as many as fit when the sweep starts). `device` is
    the type of device that they train on.
    """

    def __init__(self, settings: ExecutorSettings, device: str) -> None:
        self._address, self._most, self._resources = settings.address, settings.workers, Resources.of(settings, device)
        self.pack_memory = self._resources.pack_memory
        self._numbers = itertools.count()
        self._running: dict[Any, int] = {}
        self._objects: dict[str, tuple[str, Any]] = {}
        self._clearing: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Raise LoraExpError when Ray is not installed, or when no cluster with room for a pack is at the address."""
        self._loaded()
        if self._address is None:
            return
        host, _, port = self._address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise LoraExpError(f"executor.address={self._address}: must be HOST:PORT of a Ray cluster, or null")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise LoraExpError(f"executor.address={self._address}: no Ray cluster answers there ({error})") from error
        log.info("executor.address=%s: room for %d packs at a time", self._address, self.workers)

    @functools.cached_property
    def workers(self) -> int:  # type: ignore[override]
        """How many packs fit on the nodes at a time. Raises LoraExpError when none does."""
        fit = sum(self._fitting(node) for node in self._nodes())
        if fit == 0:
            raise self._too_large()
        return min(fit, self._most or fit)

    def start(self, task: PackTask) -> int:
        """Send a pack to the cluster, which chooses the node."""
        number = next(self._numbers)
        largest = max((int(node.get("memory", 0)) for node in self._nodes() if self._fitting(node)), default=0)
        memory = self._resources.memory or min(task.memory, largest)
        options = {"num_cpus": self._resources.cpus, "num_gpus": self._resources.gpus, "memory": memory}
        data = Path(task.data)
        prepared = [self._put("data", data.name, data.read_bytes)]  # in a list Ray does not fetch it for each task
        base = self._put("base", task.base_key, functools.partial(_base, task))
        checkpoints = stored_checkpoints(Store(Path(task.store)), task.keys, task.begin)
        ref = self._train.options(**options).remote(task, base, checkpoints, prepared)
        self._running[ref] = number
        return number

    def wait(self, progress: Progress) -> PackEnd:
        """Wait for the next pack that ends. Raises LoraExpError when no node has had room for a pack for a minute."""
        ray, since = self._ray, time.monotonic()
        while True:
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0)
            if ready:
                break
            if any(map(self._fitting, self._nodes())):
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise self._too_large()
        number = self._running.pop(ready[0])
        try:
            why, files = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            message = (str(error).strip().splitlines() or [""])[0]
            return PackEnd(number, f"its worker was lost ({type(error).__name__}: {message})", lost=True)
        return PackEnd(number, why, files=files)

    def end(self) -> None:
        """Cancel all running packs, and stop a Ray that was started here."""
        if "_ray" not in vars(self):
            return
        for ref in self._running:
            self._ray.cancel(ref, force=True)
        self._running, self._objects = {}, {}
        self._ray.shutdown()
        if self._clearing is not None:
            self._clearing.communicate()
            self._clearing = None
        for name in ("_ray", "_train", "workers"):
            vars(self).pop(name, None)

    @functools.cached_property
    def _ray(self) -> Any:
        """Connect to Ray, or start it. Raises LoraExpError when it can't be reached."""
        ray = self._loaded()
        on_terminate = signal.getsignal(signal.SIGTERM)
        # Workers need these before they import torch.
        environment = {"env_vars": {name: os.environ[name] for name in PORTABLE if name in os.environ}}
        # Without "local" Ray would join a cluster that runs on this machine, or that RAY_ADDRESS names.
        alone = {"address": "local", "include_dashboard": False}
        where = alone if self._address is None else {"address": self._address}
        try:
            started = ray.init(**where, logging_level="error", log_to_driver=False, runtime_env=environment)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise LoraExpError(f"executor.address={self._address or 'null'}: can't connect to Ray ({line})") from error
        if self._address is None:
            self._clearing = cleared_at_the_end(started.address_info["session_dir"])
        atexit.register(self.end)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler would exit without a message
        return ray

    def _loaded(self) -> Any:
        """Import Ray, which reads its environment variables at import."""
        os.environ |= ENVIRONMENT
        if self._address is None:
            # Ray runs any code that it is sent, so it may listen on this machine only, and requires a token.
            os.environ |= ALONE
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        return loaded("ray", "ray")

    @functools.cached_property
    def _train(self) -> Any:
        from lora_exp.executors.worker import trained_apart

        return self._ray.remote(max_retries=0, scheduling_strategy="SPREAD")(trained_apart)

    def _put(self, kind: str, key: str, content: Callable[[], object]) -> Any:
        """Put content into Ray's object store once; return a reference. Only the latest of a kind stays there."""
        if self._objects.get(kind, ("", None))[0] != key:
            self._objects[kind] = (key, self._ray.put(content()))
        return self._objects[kind][1]

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self, node: dict[str, float]) -> int:
        """Return how many packs fit on an idle node."""
        own = self._resources
        wanted = {"CPU": own.cpus, "GPU": own.gpus, "memory": own.memory or 0}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount)

    def _too_large(self) -> LoraExpError:
        own = self._resources
        memory = "null" if own.memory is None else f"{own.memory / 2**30:g}"
        wanted = f"executor.cpus={own.cpus:g}, executor.gpus={own.gpus:g}, executor.memory={memory}"
        return LoraExpError(f"{wanted}: no node of the Ray cluster has room for a pack; ask for less")


def _base(task: PackTask) -> Files:
    """Read the base. Raises LoraExpError when another process has removed it."""
    files = Store(Path(task.store)).get("bases", task.base_key)
    if files is None:
        raise LoraExpError(f"store.folder={task.store}: the base was removed from it; run again")
    return files
