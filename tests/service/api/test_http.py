"""Every error is a problem, uploads come back byte for byte, the OpenAPI page is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.contract.schemas.submissions import Spec
from service.contract.times import now, rfc3339, seconds


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("GET", "/jobs/nope", 404, "unknown_job"),
        ("GET", "/jobs/" + "0" * 26, 404, "unknown_job"),
        ("GET", "/jobs/..%2f..%2fetc", 404, "not_found"),
        ("GET", "/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/jobs?cursor=x", 422, "invalid_cursor"),
        ("GET", "/jobs?status=odd", 422, "invalid_request"),
        ("GET", "/models/sha256:0", 404, "unknown_model"),
        ("GET", "/models/" + "0" * 64 + "/onnx", 404, "unknown_model"),
        ("GET", "/models?cursor=x", 422, "invalid_cursor"),
        ("GET", "/datasets/x", 404, "unknown_dataset"),
        ("POST", "/models", 400, "invalid_multipart"),
        ("POST", "/certify", 415, "unsupported_media_type"),
    ],
)
def test_every_error_is_a_problem(
    api: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = api.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)


def test_a_wrong_method_is_answered_with_the_right_ones(api: httpx.Client) -> None:
    assert api.delete("/models").headers["allow"] == "GET, POST"
    assert api.get("/certify").headers["allow"] == "POST"


def test_a_model_can_be_uploaded_named_and_fetched_byte_for_byte(api: httpx.Client) -> None:
    data = bytes([0x08, 8, 0x3A, 0])
    files = {"model": ("n.onnx", data), "name": (None, "mine")}
    first = api.post("/models", files=files)
    assert (first.status_code, first.json()["name"]) == (201, "mine")
    assert api.post("/models", files=files).status_code == 200
    shown = api.get(first.headers["location"]).json()
    assert shown == first.json() == api.get("/models").json()["items"][0]
    assert api.get(shown["links"]["onnx"]).content == data
    assert shown["links"]["weights"] is None
    none = api.get(f"/models/{shown['id']}/weights")
    assert (none.status_code, none.json()["code"]) == (404, "no_weights")
    bad = api.post("/models", files={**files, "name": (None, "../x")})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_name")


def test_health_is_told_without_a_body_too(api: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        answer = api.head(path)
        assert (answer.status_code, answer.content) == (api.get(path).status_code, b"")


def test_a_foreign_name_that_leads_here_is_not_served(api: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::2]"):
        answer = api.get("/jobs", headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "key_required")
    for host in ("localhost", "127.0.0.1:9", "[::1]:80", "LOCALHOST:8000"):
        assert api.get("/jobs", headers={"Host": host}).status_code == 200


def test_the_openapi_page_describes_the_endpoints(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert {"/certify", "/jobs", "/jobs/{job_id}", "/models", "/datasets", "/readyz"} <= set(paths)


def test_the_pages_about_the_api_need_nothing_from_outside(api: httpx.Client) -> None:
    for path, script in (("/docs", "swagger-ui-bundle.js"), ("/redoc", "redoc.standalone.js")):
        page = api.get(path)
        assert page.status_code == 200
        linked = re.findall(r'(?:src|href|spec-url)="([^"]+)"', page.text)
        assert f"docs/{script}" in linked
        assert "//" not in "".join(linked), "only relative addresses"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "script-src 'self' 'unsafe" not in policy
        for address in linked:
            assert api.get(f"/{address}").status_code == 200, address
    answer = api.get("/docs/swagger-ui-bundle.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    for name in ("core.py", "..%2fcore.py", "__init__.py"):
        assert api.get(f"/docs/{name}").status_code == 404


def test_the_openapi_page_shows_what_a_spec_may_say(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    spec = page["components"]["schemas"]["Spec"]
    assert spec["required"] == ["norm", "epsilons"]
    assert set(spec["properties"]) == set(Spec.model_fields)
    assert spec["properties"]["method"]["default"] == "auto"
    told = ("norm", "epsilons", "method", "samples", "clip", "architecture", "output", "binary")
    assert all(spec["properties"][name]["description"] for name in told)
    body = page["paths"]["/certify"]["post"]["requestBody"]["content"]
    reference = {"$ref": "#/components/schemas/Spec"}
    assert body["application/json"]["schema"]["properties"]["spec"] == reference
    text = body["multipart/form-data"]["schema"]["properties"]["spec"]
    assert text["contentSchema"] == reference
    Spec.model_validate(json.loads(text["example"]))


def test_the_openapi_page_describes_every_field_that_may_be_sent(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    schemas, bare, seen = page["components"]["schemas"], [], set()

    def walk(schema: Any, place: str) -> None:
        name = schema.get("$ref", "").rpartition("/")[2]
        if name:
            if name not in seen:
                seen.add(name)
                walk(schemas[name], name)
            return
        for kind in ("anyOf", "allOf", "oneOf"):
            for part in schema.get(kind, ()):
                walk(part, place)
        for member, part in schema.get("properties", {}).items():
            if "$ref" not in part and not part.get("description"):
                bare.append(f"{place}.{member}")
            walk(part, f"{place}.{member}")

    for path, operations in page["paths"].items():
        for operation in operations.values():
            bare += [
                f"{path} {row['name']}"
                for row in operation.get("parameters", ())
                if not row.get("description")
            ]
            for media in operation.get("requestBody", {}).get("content", {}).values():
                walk(media["schema"], path)
    assert not bare
    assert {"Spec", "TrainSpec", "Hyperparameters", "AttackSpec", "ScheduleSpec"} <= seen
    training = schemas["TrainSpec"]
    assert training["required"] == ["method", "dataset", "epsilon"]
    assert training["properties"]["recipe"]["default"] == "fast"


def test_every_reference_of_the_openapi_page_leads_somewhere(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    references = set(_references(page))
    assert "#/components/schemas/JsonValue" in references
    for reference in references:
        place = page
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_times_are_rfc_3339_in_utc() -> None:
    moment = now()
    text = rfc3339(moment)
    assert text.endswith("Z")
    assert abs(seconds(text) - moment) < 1e-5
