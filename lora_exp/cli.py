"""The sub-commands of `lora-exp`; each takes its arguments and returns an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from lora_exp.config import compose_settings


def ui(arguments: Sequence[str]) -> int:
    """Open the MLflow UI on the store that runs are recorded in."""
    parser = argparse.ArgumentParser(prog="lora-exp ui", description=ui.__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default 5000)")
    parser.add_argument("overrides", nargs="*", help="such as tracking.uri=sqlite:///other.db")
    options = parser.parse_args(arguments)
    from lora_exp.records import serve_ui

    return serve_ui(compose_settings(options.overrides).tracking, options.port)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"ui": ui}
