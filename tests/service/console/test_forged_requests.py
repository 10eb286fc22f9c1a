"""Other sites' pages: refused at every address that changes something, with and without keys."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest

from service.access.keys import KeyRing
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from tests.service.console.conftest import browser, log_in, token_in, unsafe


def changing(client: httpx.Client) -> list[tuple[str, str]]:
    """Method and address of everything that changes something, by the API's own description."""
    paths = client.get("/openapi.json", headers={"Accept": "application/json"}).json()["paths"]
    found = [
        (method.upper(), path.format(job_id="0" * 26, form="json"))
        for path, methods in paths.items()
        for method in methods
        if method in ("post", "put", "patch", "delete")
    ]
    assert len(found) >= 7
    return [*found, ("POST", "/login"), ("POST", "/logout")]


@pytest.mark.parametrize("keyed", [False, True])
def test_no_other_sites_page_changes_anything(
    keyed: bool, settings: Settings, serve: Callable[[Settings], httpx.Client]
) -> None:
    ring = KeyRing(settings.data_dir / "keys")
    key = ring.create("ann", admin=True)[0] if keyed else ""
    with browser(str(serve(settings).base_url)) as victim:
        if keyed:
            assert log_in(victim, key).status_code == 303
        token = token_in(victim.get("/system"))
        own = unsafe(victim, token)
        other_port = own["Origin"].rpartition(":")[0] + ":1"
        for method, address in changing(victim):
            forged = [
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
                {"Origin": other_port},
                {"Origin": "https://evil.example", "X-CSRF-Token": token},
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site", "X-CSRF-Token": token},
                {},
                {"Origin": own["Origin"]},
                {"Origin": own["Origin"], "X-CSRF-Token": "0" * 64},
                {"Origin": own["Origin"], "X-CSRF-Token": "x" * 5000},
            ]
            for headers in forged:
                answer = victim.request(method, address, headers=headers)
                assert answer.status_code == 403, (method, address, headers)
                assert answer.json()["code"] in ("cross_site", "stale_form")
        # With both it is a request as any other.
        assert victim.post(f"/jobs/{'0' * 26}/cancel", headers=own).status_code in (404, 503)
        assert victim.post("/jobs/bulk", headers=own).status_code == 415


def test_a_key_in_the_header_needs_no_token_but_serves_no_other_site(
    settings: Settings, serve: Callable[[Settings], httpx.Client]
) -> None:
    key, _ = KeyRing(settings.data_dir / "keys").create("ann")
    client = serve(settings)
    bearer = {"Authorization": f"Bearer {key}"}
    assert client.post("/jobs/bulk", headers=bearer).status_code == 415
    answer = client.post("/jobs/bulk", headers={**bearer, "Origin": "https://evil.example"})
    assert answer.json()["code"] == "cross_site"


def test_requests_of_the_apis_own_page_bring_its_token(
    settings: Settings, serve: Callable[[Settings], httpx.Client]
) -> None:
    with browser(str(serve(settings).base_url)) as reader:
        page = reader.get("/docs")
        found = re.search(r'requestInterceptor.*"X-CSRF-Token"\] = "([0-9a-f]{64})"', page.text)
        assert found is not None
        headers = unsafe(reader, found[1])
        assert reader.post("/jobs/bulk", headers=headers).status_code == 415
        scripts = page.headers["content-security-policy"].partition("script-src")[2]
        assert "unsafe" not in scripts.partition(";")[0]


def test_pages_of_others_jobs_are_as_unknown_as_their_jobs(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    certified: Callable[..., JobSubmission],
) -> None:
    ring = KeyRing(settings.data_dir / "keys")
    (_, ann), (bob_key, bob) = ring.create("ann"), ring.create("bob")
    his, hers = certified(principal=bob["id"]), certified(principal=ann["id"])
    addresses = (
        "/jobs/{}/view", "/jobs/{}/view/events", "/jobs/{}/samples/view", "/jobs/{}/samples/0.png",
        "/jobs/{}/report.html", "/compare?a={}", "/compare?b={}",
    )  # fmt: skip
    with browser(str(serve(settings).base_url)) as client:
        for address in addresses:
            assert client.get(address.format(hers.id)).status_code == 303, "a stranger"
        assert log_in(client, bob_key).status_code == 303
        for address in addresses:
            assert client.get(address.format(hers.id)).status_code == 404, address
            assert client.get(address.format(his.id)).status_code == 200, address
        assert hers.id not in client.get("/").text
        assert his.id in client.get("/").text
        assert hers.id not in client.get("/compare").text
        assert "worker" not in client.get("/system").text.partition("Versions")[0].split("<h2>")[-1]
