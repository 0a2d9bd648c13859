"""compose.yaml is legal by the schema of Compose, and its names are those of the project."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kd_pipeline.sweep.storage import SERVER

check_jsonschema = pytest.importorskip("check_jsonschema", reason="an extra of `dev`")

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_it_is_legal_by_the_schema_of_compose(compose: Any) -> None:
    schema = files(check_jsonschema) / "builtin_schemas/vendor/compose-spec.json"
    rules = json.loads(schema.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(rules)(rules)
    assert not [error.message for error in validator.iter_errors(compose)]
    wrong = {**compose, "services": {"mlflow": {"imagge": "kd_pipeline"}}}
    assert list(validator.iter_errors(wrong))


def test_every_image_is_pinned_or_built_here(compose: Any) -> None:
    for name, service in compose["services"].items():
        if service["image"] == "kd_pipeline":
            build = service["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        else:
            assert re.search(r":\d+\.\d+", service["image"]), name


def test_services_wait_for_services_that_are_there(compose: Any) -> None:
    services = compose["services"]
    for service in services.values():
        awaited = service.get("depends_on", {})
        assert set(awaited) <= set(services)
        for name in awaited if isinstance(awaited, dict) else ():
            if awaited[name]["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file()


def test_passwords_are_variables_that_the_example_lists_and_git_ignores(compose: Any) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    variables = set(re.findall(r"\$\{(\w+)", text))
    example = (DEPLOY / "example.env").read_text()
    assert variables == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    assert "deploy/.env" in (DEPLOY.parent / ".gitignore").read_text().splitlines()
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY", name):
                assert value.startswith("${")


def test_the_pipeline_and_the_server_mean_the_same_places(compose: Any) -> None:
    services = compose["services"]
    server, pipeline = services["mlflow"], services["pipeline"]
    uri = pipeline["environment"]["MLFLOW_TRACKING_URI"]
    options = dict(
        word.removeprefix("--").partition("=")[::2]
        for word in server["command"]
        if word.startswith("--")
    )
    assert uri.removeprefix("http://") in options["allowed-hosts"].split(",")
    assert uri.removeprefix("http://").partition(":")[0] in services
    trials = pipeline["environment"][SERVER]
    databases = [url.rpartition("/") for url in (trials, options["backend-store-uri"])]
    assert databases[0][0] == databases[1][0] == "postgresql+psycopg://kd@postgres"
    assert databases[1][2] == services["postgres"]["environment"]["POSTGRES_DB"]
    assert f"CREATE DATABASE {databases[0][2]};" in (DEPLOY / "trials.sql").read_text()
