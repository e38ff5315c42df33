"""python -m pytest tests/test_settings.py"""

from __future__ import annotations

import dataclasses

import pytest

from lora_exp.config.settings import (
    CLAIMS,
    EXECUTORS,
    SETTINGS,
    BaseFile,
    DataFolder,
    ExecutorSettings,
    Settings,
    settings_from,
)
from lora_exp.errors import LoraExpError
from lora_exp.report.claims import catalogue


def test_a_config_without_settings_groups_has_the_defaults() -> None:
    spec = {"data": {"name": "mnist", "root": "elsewhere"}, "base": {"epochs": 0, "weights": "own.safetensors"}}
    defaults = {group: cls() for group, cls in SETTINGS.items()}
    assert settings_from(spec) == Settings(**defaults, data=DataFolder("elsewhere"), base=BaseFile("own.safetensors"))


def test_every_field_says_what_it_allows_and_its_default_is_allowed() -> None:
    for cls in (*SETTINGS.values(), DataFolder, BaseFile):
        for field in dataclasses.fields(cls):
            assert field.metadata["allowed"] and field.metadata["check"](field.default), f"{cls.__name__}.{field.name}"


def test_a_group_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(LoraExpError, match="store: must be a config group"):
        settings_from({"data": {}, "base": {}, "store": 3})


def test_the_claims_that_a_config_may_name_are_those_that_the_report_can_judge() -> None:
    assert tuple(catalogue.REGISTRY) == CLAIMS


def test_a_key_that_an_executor_does_not_use_is_refused() -> None:
    with pytest.raises(LoraExpError, match=r"executor\.minutes=5: must be left out with executor=ray"):
        ExecutorSettings("ray", minutes=5).check()
    for kind in EXECUTORS:
        ExecutorSettings(kind).check()
