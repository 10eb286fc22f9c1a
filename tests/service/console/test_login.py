"""Sessions: a cookie that is no key, ended by time, by logging out and by revoking the key."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from service.access.keys import KeyRing
from service.access.quotas import Quotas
from service.access.sessions import Sessions
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.problems import TooManyRequests
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from tests.service.console.conftest import browser, log_in, token_in


@pytest.fixture
def ring(settings: Settings) -> KeyRing:
    return KeyRing(settings.data_dir / "keys")


@pytest.fixture
def base(ring: KeyRing, settings: Settings, serve: Callable[[Settings], httpx.Client]) -> str:
    """Where a console with keys is served."""
    ring.create("first", admin=True)
    return str(serve(settings).base_url)


def test_a_session_lets_in_until_logged_out_and_says_nothing_of_the_key(
    base: str, ring: KeyRing, redis: Redis
) -> None:
    key, _ = ring.create("ann")
    with browser(base) as ann:
        asked = ann.get("/?status=failed")
        assert (asked.status_code, asked.headers["location"]) == (
            303,
            "/login?next=%2F%3Fstatus%3Dfailed",
        )
        answer = log_in(ann, key)
        assert (answer.status_code, answer.headers["location"]) == (303, "/system")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "path=/" in cookie
        (session,) = ann.cookies.values()
        kept_cookies = dict(ann.cookies)
        assert key not in answer.headers["set-cookie"]
        assert ann.get("/").status_code == 200
        assert ann.get("/jobs", headers={"Accept": "application/json"}).json()["items"] == []
        kept = [str(name) for name in redis.scan_iter("certserve:session:*")]
        values = [str(redis.get(name)) for name in kept]
        assert kept
        for secret in (session, key):
            assert not any(secret in text for text in (*kept, *values))
        gone = ann.post(
            "/logout",
            data={"csrf_token": token_in(ann.get("/"))},
            headers={"Origin": base.rstrip("/")},
        )
        assert gone.status_code == 303
        assert not ann.cookies
        stolen = httpx.get(f"{base}/jobs", cookies=kept_cookies)
        assert stolen.status_code == 401


def test_revoking_the_key_ends_its_sessions_at_once_and_no_others(base: str, ring: KeyRing) -> None:
    (ann_key, ann_record), (bob_key, _) = ring.create("ann"), ring.create("bob")
    with browser(base) as ann, browser(base) as bob:
        assert log_in(ann, ann_key).status_code == log_in(bob, bob_key).status_code == 303
        ring.revoke(ann_record["id"])
        assert ann.get("/jobs").status_code == 303, "to the login"
        assert bob.get("/jobs", headers={"Accept": "application/json"}).status_code == 200


def test_a_stream_ends_with_its_session(
    base: str, ring: KeyRing, ledger: Ledger, make_submission: Callable[..., JobSubmission]
) -> None:
    key, record = ring.create("ann")
    job = make_submission(principal=record["id"])
    ledger.create(job)
    for address in ("/console/jobs/events", f"/jobs/{job.id}/view/events"):
        key, record = ring.create("ann", admin=True)
        with browser(base) as ann:
            assert log_in(ann, key).status_code == 303
            with ann.stream("GET", address) as answer:
                assert answer.status_code == 200
                ring.revoke(record["id"])
                for _ in answer.iter_lines():
                    pass  # until the service ends it: the job goes on


def test_logging_in_gives_a_new_id_and_leads_to_no_other_site(base: str, ring: KeyRing) -> None:
    key, _ = ring.create("ann")
    for target in ("//evil.example", "/\\evil.example", "https://evil.example", "javascript:x", ""):
        with browser(base) as ann:
            ann.get("/login")
            (planted,) = ann.cookies.values()
            answer = log_in(ann, key, next=target)
            assert (answer.status_code, answer.headers["location"]) == (303, "/"), target
            assert list(ann.cookies.values()) != [planted]


def test_wrong_keys_are_refused_and_soon_nobody_may_try_from_there(
    base: str, ring: KeyRing
) -> None:
    key, _ = ring.create("ann")
    with browser(base) as client:
        answers = [log_in(client, f"crt_aaaaaaaaaa_{n}").status_code for n in range(12)]
        assert answers[:8] == [401] * 8
        assert answers[-1] == 429
        late = log_in(client, key)
        assert late.status_code == 429, "whatever the key"
        assert "too many tries" in late.text.lower()


def test_sessions_end_by_themselves_and_with_the_settings_keys(redis: Redis, ring: KeyRing) -> None:
    given = KeyRing(ring._folder, ["ann=" + "k" * 20, "ann=" + "l" * 20])
    quotas = Quotas(redis)
    sessions = Sessions(redis, given, quotas, lifetime_s=0.2)
    session = sessions.begin("k" * 20, address="a")
    assert session is not None
    caller = sessions.caller(session)
    assert caller is not None
    assert caller.name == "ann"
    # Of two keys of one name only the other one is left after a restart.
    other = Sessions(redis, KeyRing(ring._folder, ["ann=" + "l" * 20]), quotas, lifetime_s=9)
    assert other.caller(session) is None
    time.sleep(0.25)
    assert sessions.caller(session) is None
    assert [sessions.begin("wrong", address="b") for _ in range(10)] == [None] * 10
    with pytest.raises(TooManyRequests):
        sessions.begin("k" * 20, address="b")


def test_behind_https_the_cookie_is_the_hosts_own_and_secure(
    ring: KeyRing, settings: Settings, serve: Callable[[Settings], httpx.Client]
) -> None:
    key, _ = ring.create("ann")
    public = "https://certserve.example"
    client = serve(settings.model_copy(update={"public_url": public}))
    page = client.get("/login", headers={"Accept": "text/html"})
    cookie = page.headers["set-cookie"]
    assert cookie.startswith("__Host-certserve=")
    assert "Secure" in cookie
    name, _, rest = cookie.partition("=")
    headers = {"Cookie": f"{name}={rest.partition(';')[0]}", "Origin": public}
    form = {"key": key, "csrf_token": token_in(page), "next": "/"}
    assert client.post("/login", data=form, headers=headers).status_code == 303
    headers["Origin"] = str(client.base_url)
    assert client.post("/login", data=form, headers=headers).status_code == 403
