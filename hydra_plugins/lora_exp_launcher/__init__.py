"""Hydra finds launchers and sweepers only in this namespace package; the code is in `lora_exp.sweeps`.

- `packed_launcher`: `hydra/launcher=packed`
- `sweepers`: `hydra/sweeper=grid` and `hydra/sweeper=optuna`
"""
