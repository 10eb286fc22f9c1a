"""Every route has a rule here: who may ask, whose things it shows, and how its answers are kept
from running, being framed and being believed by other sites' pages.

The rules are held against the application's own table of routes, so a route without one fails.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

import httpx
import pytest
from starlette.routing import BaseRoute

from service.access.keys import KeyRing
from service.console.app import create_app
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from tests.service.conftest import eventually
from tests.service.console.conftest import HOSTILE, PAGE, Inert, browser, log_in, token_in, unsafe


@dataclass(frozen=True)
class Rule:
    """Who may ask (``anyone``, whoever has a ``key``, an ``admin``), and how to ask.

    ``asks``: what follows the path in the address; {job_id} and the like stand for what ann owns.
    ``page``: made for people, so a browser without a session is sent to the login. ``runs``: the
    address has a style or a script of its own, which its policy names. ``answers``: the status that
    ann gets in a browser.
    """

    who: Literal["anyone", "key", "admin"]
    asks: tuple[str, ...] = ("",)
    page: bool = False
    runs: bool = False
    answers: int = 200


KEY, PAGE_RULE = Rule("key"), Rule("key", page=True)
RULES = {
    "GET /": Rule("key", ("", "?status=succeeded&kind=certify"), page=True),
    "GET /new": PAGE_RULE,
    "GET /train": PAGE_RULE,
    "GET /system": PAGE_RULE,
    "GET /compare": Rule("key", ("", "?a={job_id}&b={job_id}"), page=True),
    "GET /jobs/{job_id}/view": PAGE_RULE,
    "GET /jobs/{job_id}/samples/view": PAGE_RULE,
    "GET /jobs/{job_id}/view/events": KEY,
    "GET /console/jobs/events": KEY,
    "GET /console/jobs/confirm": Rule("key", ("?action=delete&status=failed",)),
    "GET /console/{name:path}": Rule("anyone"),
    "GET /login": Rule("anyone"),
    "POST /login": Rule("anyone"),
    "POST /logout": Rule("anyone"),
    "GET /docs": Rule("anyone", runs=True),
    "GET /docs/{name}": Rule("anyone"),
    "GET /redoc": Rule("anyone", runs=True),
    "GET /openapi.json": Rule("anyone"),
    "GET /healthz": Rule("anyone"),
    "GET /readyz": Rule("anyone", answers=503),
    "GET /methods": Rule("anyone"),
    "GET /architectures": Rule("anyone"),
    "GET /keys/signing": Rule("anyone"),
    "GET /metrics": Rule("admin"),
    "GET /jobs": KEY,
    "POST /jobs/bulk": KEY,
    "GET /jobs/{job_id}": KEY,
    "POST /jobs/{job_id}/cancel": KEY,
    "POST /jobs/{job_id}/retry": KEY,
    "DELETE /jobs/{job_id}": KEY,
    "GET /jobs/{job_id}/events": KEY,
    "GET /jobs/{job_id}/report": Rule("key", runs=True),
    "GET /jobs/{job_id}/report.{form}": Rule("key", runs=True),
    "GET /jobs/{job_id}/samples": KEY,
    "GET /jobs/{job_id}/samples.jsonl": KEY,
    "GET /jobs/{job_id}/samples/{index}.png": KEY,
    "GET /jobs/{job_id}/counterexamples.npz": KEY,
    "GET /jobs/{job_id}/certificate": Rule("key", answers=404),
    "GET /jobs/{job_id}/pareto": Rule("key", answers=404),
    "GET /jobs/{job_id}/cascade": Rule("key", answers=404),
    "GET /jobs/{job_id}/pareto.{form}": Rule("key", answers=404),
    "GET /jobs/{job_id}/training": KEY,
    "GET /jobs/{job_id}/training.svg": Rule("key", runs=True),
    "GET /models": KEY,
    "POST /models": KEY,
    "GET /models/{model_id}": KEY,
    "GET /models/{model_id}/onnx": KEY,
    "GET /models/{model_id}/weights": Rule("key", answers=404),
    "GET /datasets": KEY,
    "POST /datasets": KEY,
    "GET /datasets/{dataset_id}": KEY,
    "POST /certify": KEY,
    "POST /train": KEY,
}

#: Whose secret is looked for in every answer that somebody else gets.
SECRET = "anns-own-name"
WEIGHTS = b'{"a": 1}'


class Ann:
    """What belongs to ann: a finished certification, a finished training, a model, a data set."""

    def __init__(self, base: str, key: str) -> None:
        self.base, self.key = base, key
        self.names: dict[str, str] = {"form": "html", "index": "3"}
        self.training = ""

    def addresses(self, route: str) -> Iterator[str]:
        """The addresses of a route, of ann's things."""
        path = route.partition(" ")[2]
        if path.startswith(("/docs/", "/console/{")):
            yield path.replace("{name}", "swagger-ui.css").replace("{name:path}", "console.css")
            return
        ids = dict(self.names)
        if "training" in path:
            ids["job_id"] = self.training
        for asked in RULES[route].asks:
            forms = ("json", "html", "svg") if "pareto" in path else ("json", "html", "csv", "svg")
            for form in forms if "{form}" in path else ("",):
                yield (path + asked).format(**{**ids, "form": form})
        if path == "/jobs/{job_id}/view":
            yield path.format(**{**ids, "job_id": self.training})


@pytest.fixture
def ann(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    store: Store,
    ledger: Ledger,
    make_submission: Callable[..., JobSubmission],
    certified: Callable[..., JobSubmission],
) -> Ann:
    key, record = KeyRing(settings.data_dir / "keys").create("ann")
    api = serve(settings)
    owner = Ann(str(api.base_url), key)
    job = certified(principal=record["id"])
    store.counterexamples_path(job.id).write_bytes(b"PK")
    data = DatasetSource(kind="npz", name=HOSTILE + SECRET, id="sha256:" + "b" * 64)
    plan = {
        "method": "emma", "recipe": "fast", "norm": "l2", "epsilon": "1/2", "seed": 3,
        "architecture": {"name": HOSTILE},
        "hyperparameters": {
            "epochs": 2, "batch_size": 8, "learning_rate": 0.1, "optimizer": HOSTILE,
        },
    }  # fmt: skip
    trained = make_submission(
        kind="train", principal=record["id"], training=plan, training_dataset=data, spec={},
        model=None, dataset=None,
    )  # fmt: skip
    row = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "robust": 0.25}
    store.job_dir(trained.id)
    store.training_dir(trained.id).mkdir()
    store.write_json(store.training_dir(trained.id) / "history.json", {"history": [row]})
    conclude(store, ledger, trained, "succeeded", samples=0)
    headers = {"Authorization": f"Bearer {key}"}
    sent = {
        "models": {"model": (f"<svg onload=alert(1)>{SECRET}.onnx", bytes([8, 8, 0x3A, 0]))},
        "datasets": {"dataset": (f"=1+1{SECRET}.zip", _zip())},
    }
    for collection, files in sent.items():
        answer = api.post(f"/{collection}", files=files, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 201, answer.text
        owner.names[f"{collection[:-1]}_id"] = answer.json()["id"]
    owner.names["job_id"] = job.id
    owner.training = trained.id
    eventually(ledger.memory.complete)
    return owner


def _zip() -> bytes:
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/1.png", b"\x89PNG")
    return made.getvalue()


def asked(client: httpx.Client, method: str, address: str, **options: object) -> httpx.Response:
    """The answer, read to its end; of a stream of events its first piece."""
    with client.stream(method, address, **options) as answer:  # type: ignore[arg-type]
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer._content = next(answer.iter_bytes(), b"")
        else:
            answer.read()
        return answer


def table(routes: Iterable[BaseRoute]) -> Iterator[str]:
    """Method and path of every route, those of included routers too."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from table(included.routes)
        else:
            methods = getattr(route, "methods", None) or {"MOUNT"}
            yield from (f"{method} {getattr(route, 'path', '')}" for method in methods - {"HEAD"})


def test_every_route_has_a_rule_and_every_rule_a_route(settings: Settings) -> None:
    assert set(table(create_app(settings).routes)) == set(RULES)


def test_without_a_key_there_is_nothing_but_what_everybody_may_see(ann: Ann) -> None:
    with httpx.Client(base_url=ann.base, timeout=60) as program, browser(ann.base) as person:
        for route, rule in RULES.items():
            method = route.partition(" ")[0]
            for address in ann.addresses(route):
                answer = asked(program, method, address)
                if rule.who == "anyone":
                    assert answer.status_code not in (401, 404), (route, answer.text)
                    assert SECRET not in answer.text
                    continue
                assert answer.status_code == 401, (address, answer.status_code)
                assert answer.headers["content-type"] == "application/problem+json"
                if rule.page:
                    sent = asked(person, method, address)
                    assert sent.status_code == 303, address
                    assert sent.headers["location"].startswith("/login?next=%2F")


def test_what_is_anns_is_to_others_as_if_it_were_not_there(ann: Ann, settings: Settings) -> None:
    bob, _ = KeyRing(settings.data_dir / "keys").create("bob")
    unknown = {
        "job_id": "0" * 26, "model_id": "sha256:" + "0" * 64, "dataset_id": "sha256:" + "1" * 64,
        "index": "3",
    }  # fmt: skip
    nobody = Ann(ann.base, "")
    nobody.names, nobody.training = unknown, unknown["job_id"]
    ids = [ann.names["job_id"], ann.training, ann.names["model_id"], ann.names["dataset_id"]]
    with browser(ann.base) as client:
        assert log_in(client, bob).status_code == 303
        headers = unsafe(client, token_in(client.get("/system")))
        for route, rule in RULES.items():
            if rule.who == "anyone":
                continue
            method = route.partition(" ")[0]
            sent = {**PAGE, **headers} if method != "GET" else PAGE
            pairs = zip(ann.addresses(route), nobody.addresses(route), strict=True)
            for hers, nothing in pairs:
                answer = asked(client, method, hers, headers=sent)
                assert SECRET not in answer.text, hers
                assert rule.who == "key" or answer.status_code == 403
                if hers == nothing:
                    assert not [each for each in ids if each in answer.text], hers
                    continue
                other = asked(client, method, nothing, headers=sent)
                assert answer.status_code == other.status_code == 404, hers
                # The same words but for the name that was asked for, and the token of the page.
                assert _bare(answer.text, hers) == _bare(other.text, nothing), hers
        # Nor by naming it in a body.
        spec = {"norm": "l2", "epsilons": [0.5]}
        for body in (
            {"model_id": ann.names["model_id"], "dataset": "digits", "spec": spec},
            {"model_id": ann.names["model_id"], "dataset": ann.names["dataset_id"], "spec": spec},
        ):
            refused = client.post("/certify", json=body, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")
        plan = {"method": "emma", "dataset": ann.names["dataset_id"], "epsilon": 1}
        refused = client.post("/train", json=plan, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (422, "unknown_dataset")
        wish = {"action": "delete", "filter": {}, "expected_count": 0}
        assert client.post("/jobs/bulk", json=wish, headers=headers).json()["done"] == 0
    with httpx.Client(base_url=ann.base, headers={"Authorization": f"Bearer {ann.key}"}) as hers:
        assert len(hers.get("/jobs").json()["items"]) == 2


def _bare(text: str, address: str) -> str:
    for part in re.findall(r"[0-9A-Z]{26}|sha256:[0-9a-f]{64}", address):
        text = text.replace(part, "ID")
    return text


def test_no_answer_runs_or_is_framed_and_nothing_in_it_is_believed(ann: Ann) -> None:
    """Asked for by their owner, in a browser."""
    seen = set()
    with browser(ann.base) as client:
        assert log_in(client, ann.key).status_code == 303
        for route, rule in RULES.items():
            method = route.partition(" ")[0]
            if method != "GET" or rule.who == "admin":
                continue
            for address in ann.addresses(route):
                answer = asked(client, method, address, headers=PAGE)
                assert answer.status_code == rule.answers, (address, answer.text[:300])
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy, address
                assert "frame-ancestors 'none'" in policy, address
                assert "unsafe-eval" not in policy
                assert rule.runs or "unsafe" not in policy, address
                assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
                assert answer.headers["x-frame-options"] == "DENY"
                assert answer.headers["x-content-type-options"] == "nosniff"
                media = answer.headers["content-type"].partition(";")[0]
                seen.add(media)
                _inert(media, answer, rule)
    wanted = {"text/html", "image/svg+xml", "text/csv", "application/json", "text/event-stream"}
    assert wanted <= seen


def _inert(media: str, answer: httpx.Response, rule: Rule) -> None:
    """Names from uploads are text and nothing else, in whatever form they come."""
    address = answer.request.url.path
    if media in ("text/html", "text/event-stream"):
        assert "<script>alert" not in answer.text, address
        assert "<svg onload" not in answer.text, address
    if media == "text/html" and not rule.runs:
        parser = Inert()
        parser.feed(answer.text)
        assert not parser.wrong, (address, parser.wrong)
    elif media == "text/html" and "report" in address:
        assert answer.headers["content-security-policy"].endswith("sandbox")
        assert "<script" not in answer.text
    elif media == "image/svg+xml":
        root = ElementTree.fromstring(answer.text)
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not names & {"script", "foreignObject", "image", "a", "use", "animate", "set"}
        attributes = {name for element in root.iter() for name in element.attrib}
        assert not [name for name in attributes if name.startswith("on") or "href" in name]
    elif media == "text/csv":
        assert answer.headers["content-disposition"].startswith("attachment")
        cells = [cell for line in csv.reader(io.StringIO(answer.text)) for cell in line]
        texts = [cell for cell in cells if not re.fullmatch(r"-?[0-9.e+-]+", cell)]
        assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t"))]
