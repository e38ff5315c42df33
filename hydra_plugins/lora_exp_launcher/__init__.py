"""Hydra finds launchers and sweepers only in this namespace package; what they do is in `lora_exp`."""
