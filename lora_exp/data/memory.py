"""Whether a data set fits into memory, asked before it is read."""

from __future__ import annotations

from lora_exp.errors import LoraExpError

GB = 10**9


def must_fit(needed: int, what: str, where: str) -> None:
    """Raise LoraExpError, with the figures, when `needed` bytes are more than are available; `what` are they."""
    import psutil

    available = psutil.virtual_memory().available
    if needed > available:
        raise LoraExpError(
            f"{where}: {what} need {needed / GB:,.1f} GB of memory and {available / GB:,.1f} GB are available; "
            "choose a smaller data.size, data.channels=1 or fewer data.classes"
        )
