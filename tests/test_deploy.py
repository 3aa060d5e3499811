"""What an operator is told agrees with what the code reads; Dagster accepts the instance settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = re.compile(r"\bDIFFSFSR_[A-Z_]+[A-Z]\b")
INSTANCE = ROOT / "pipelines" / "dagster.yaml"
POSTGRES = ROOT / "deploy" / "dagster.postgres.yaml"


def variables(*paths: Path) -> set[str]:
    return {name for path in paths for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}


def test_env_example_names_every_variable_and_no_other() -> None:
    code = [path for package in ("diffsfsr", "assets", "pipelines") for path in (ROOT / package).rglob("*.py")]
    operated = [ROOT / "deploy" / "docker-compose.yaml", POSTGRES]
    assert variables(ROOT / "deploy" / "env.example") == variables(*code, *operated)


@pytest.mark.parametrize("files", [[INSTANCE], [INSTANCE, POSTGRES]], ids=["sqlite", "postgres"])
def test_dagster_accepts_the_instance_settings(files: list[Path]) -> None:
    from dagster._config import validate_config
    from dagster._core.instance.config import dagster_instance_config_schema

    merged: dict[str, Any] = yaml.safe_load("\n".join(path.read_text(encoding="utf-8") for path in files))
    assert merged["telemetry"] == {"enabled": False}
    schema = dagster_instance_config_schema()
    result = validate_config(schema, merged)
    assert result.success, [error.message for error in result.errors or []]
    # the schema does refuse what it does not know
    assert not validate_config(schema, {**merged, "telemetri": {}}).success


def test_compose_publishes_on_loopback_only_and_serves_its_workspace() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "docker-compose.yaml").read_text(encoding="utf-8"))
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)  # neither page has a login
    workspace = yaml.safe_load((ROOT / "deploy" / "workspace.compose.yaml").read_text(encoding="utf-8"))
    assert workspace["load_from"][0]["grpc_server"]["host"] in compose["services"]


def test_the_deepspeed_settings_shown_are_the_ones_used() -> None:
    from diffsfsr.presets import PRESETS
    from diffsfsr.training.launch import deepspeed_config

    shown = json.loads((ROOT / "deploy" / "deepspeed.json").read_text(encoding="utf-8"))
    assert shown == {
        name: deepspeed_config(preset.training) for name, preset in PRESETS.items() if not preset.experts
    }  # an ablation trains as its basis does


def test_the_instance_settings_stand_once() -> None:
    assert (ROOT / "deploy" / "dagster.yaml").samefile(INSTANCE)
