"""A crew of a Ray cluster's workers: of one that is there already, or of one started on this machine for a sweep.

A base is put into Ray's object store once, which brings it once to each node that trains on it. Results come back
with the answers, so that the store has one writer and the nodes need no file system in common. A lost worker or node
is not Ray's to mend: what is tried again, and how often, is decided in `crew.py` as for every executor.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib.util
import itertools
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_exp.errors import LoraExpError
from lora_exp.executors.remote import PACK_MEMORY, Answer, Files, PackTask, Progress
from lora_exp.numerics import requested
from lora_exp.storage.store import Store

log = logging.getLogger(__name__)

# No figures of use are sent anywhere; which GPUs a task sees that asks for none is left alone, without a warning.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# The first has Ray use 127.0.0.1, as it does of itself on systems where it knows no clusters.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# How long a cluster may have no node that a pack fits on before its packs are given up.
PATIENCE = 60.0


class RayCrew:
    """Workers of the cluster at `address` (HOST:PORT; None: a Ray of this machine, started and ended with the sweep).

    Each pack takes `cpus` and `gpus`, and `memory` bytes (None: what it is expected to take); `most` bounds how many
    train at a time (None: as many as fit when the sweep starts).
    """

    def __init__(self, address: str | None, most: int | None, cpus: float, gpus: float, memory: int | None) -> None:
        self.pack_memory = (memory or PACK_MEMORY) // 2  # the rest is for libraries and data
        self._address, self._most, self._cpus, self._gpus, self._memory = address, most, cpus, gpus, memory
        self._numbers = itertools.count()
        self._running: dict[Any, int] = {}
        self._objects: dict[str, tuple[str, Any]] = {}

    def check(self) -> None:
        """Raises LoraExpError when Ray is not installed, or no cluster at the address has room for a pack."""
        if importlib.util.find_spec("ray") is None:
            raise LoraExpError("executor=ray: ray is not installed; pip install 'lora-exp[ray]'")
        try:
            self._loaded()
        except ImportError as error:
            raise LoraExpError(f"executor=ray: ray can't be loaded ({error}); pip install 'lora-exp[ray]'") from error
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
    def workers(self) -> int:
        """As many packs as fit on the nodes at once. Raises LoraExpError when not even one does."""
        fit = sum(self._fitting(node) for node in self._nodes())
        if fit == 0:
            raise self._too_large()
        return min(fit, self._most or fit)

    def start(self, task: PackTask) -> int:
        """Hand a pack to the cluster, which places it."""
        number = next(self._numbers)
        memory = self._memory or min(task.memory, self._roomiest())
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "memory": memory}
        prepared = [self._put("data", task.specs[0]["data"]["name"], functools.partial(_prepared, task))]
        base = self._put("base", task.base_key, functools.partial(_base, task))
        ref = self._train.options(**options).remote(dataclasses.asdict(task), base, prepared)
        self._running[ref] = number
        return number

    def wait(self, progress: Progress) -> Answer:
        """The next pack that ends. Raises LoraExpError when no node has had room for any for a minute."""
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
            said = (str(error).strip().splitlines() or [""])[0]
            return Answer(number, f"its worker was lost ({type(error).__name__}: {said})", lost=True)
        return Answer(number, why, files=files)

    def end(self) -> None:
        """Cancel what runs; a Ray that was started here ends with it."""
        if "_ray" not in vars(self):
            return
        for ref in self._running:
            self._ray.cancel(ref, force=True)
        self._running, self._objects = {}, {}
        self._ray.shutdown()
        for name in ("_ray", "_train", "workers"):
            vars(self).pop(name, None)

    @functools.cached_property
    def _ray(self) -> Any:
        """Ray, connected."""
        ray = self._loaded()
        # Workers must have the request before they load torch.
        on_terminate = signal.getsignal(signal.SIGTERM)
        environment = {"env_vars": {"MKL_CBWR": requested()}}
        where = {"include_dashboard": False} if self._address is None else {"address": self._address}
        try:
            ray.init(**where, logging_level="error", log_to_driver=False, runtime_env=environment)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise LoraExpError(f"executor.address={self._address or 'null'}: can't join that Ray ({line})") from error
        atexit.register(self.end)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray would exit without a word
        return ray

    def _loaded(self) -> Any:
        """Ray, which reads its environment when it is loaded."""
        os.environ |= ENVIRONMENT
        if self._address is None:
            # Ray runs whatever it is sent: let it listen on this machine alone, and to nobody without the token.
            os.environ |= ALONE
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        return ray

    @functools.cached_property
    def _train(self) -> Any:
        from lora_exp.executors.worker import trained_apart

        return self._ray.remote(max_retries=0, scheduling_strategy="SPREAD")(trained_apart)

    def _put(self, kind: str, key: str, files: Callable[[], Files]) -> Any:
        """A reference to files in Ray's object store, where they are put once; only the latest of a kind stay there."""
        if self._objects.get(kind, ("", None))[0] != key:
            self._objects[kind] = (key, self._ray.put(files()))
        return self._objects[kind][1]

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self, node: dict[str, float]) -> int:
        """How many packs fit on an idle node."""
        wanted = {"CPU": self._cpus, "GPU": self._gpus, "memory": self._memory or 0}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount)

    def _roomiest(self) -> int:
        """Bytes of memory of the largest node that a pack fits on."""
        return max((int(node.get("memory", 0)) for node in self._nodes() if self._fitting(node)), default=0)

    def _too_large(self) -> LoraExpError:
        wanted = f"executor.cpus={self._cpus:g}, executor.gpus={self._gpus:g}, executor.memory={self._memory or 'null'}"
        return LoraExpError(f"{wanted}: no node of the Ray cluster has room for a pack")


def _base(task: PackTask) -> Files:
    """Raises LoraExpError when somebody has just removed it."""
    files = Store(Path(task.store)).get("bases", task.base_key)
    if files is None:
        raise LoraExpError(f"store.folder={task.store}: the base is gone from it")
    return files


def _prepared(task: PackTask) -> Files:
    """The prepared data set, for nodes that don't see the data root."""
    name = f"{task.specs[0]['data']['name']}.safetensors"
    return {name: (Path(task.data_root) / name).read_bytes()}
