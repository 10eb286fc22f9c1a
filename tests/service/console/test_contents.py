"""Pages hold what somebody comes to them for: every member of a certificate, every column, every
explanation, and downloads that are there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from redis import Redis

from service.contract.ledger.ledger import Ledger
from service.contract.ledger.worker_registry import WorkerRegistry
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.storage.pictures import COUNTEREXAMPLES, THUMBNAILS, pack_pictures
from service.contract.storage.store import Store
from tests.service.console.conftest import HOSTILE, PAGE, PNG, report_of, sample_rows

Certified = Callable[..., JobSubmission]


def text_of(page: str) -> str:
    """What is read, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def charts(page: str) -> list[dict[str, Any]]:
    """The numbers that the script is handed."""
    return [json.loads(unescape(found)) for found in re.findall(r'data-chart="([^"]*)"', page)]


def test_a_jobs_page_offers_the_file_that_is_certified(
    api: httpx.Client, store: Store, certified: Certified
) -> None:
    """Also where it is not the uploaded one."""
    job = certified()
    assert job.model is not None
    page = api.get(f"/jobs/{job.id}/view", headers=PAGE).text
    assert f'href="/models/{job.model.digest}/onnx"' in page
    job = certified()
    assert job.model is not None
    report = store.read_json(store.report_path(job.id))
    assert report is not None
    made, told = "sha256:" + "e" * 64, {"id": job.model.digest, "name": "n", "layers": []}
    store.report_path(job.id).unlink()
    report["model"] |= {"id": made, "rewritten_from": told}
    store.write_json(store.report_path(job.id), report)
    page = api.get(f"/jobs/{job.id}/view", headers=PAGE).text
    assert f'href="/models/{made}/onnx"' in page
    assert f'href="/models/{job.model.digest}/onnx"' not in page
    read = text_of(page)
    assert f"certified model (rewritten) {made}" in read
    assert f"uploaded model {job.model.digest}" in read


def test_a_jobs_page_has_its_curve_with_everything_that_belongs_to_it(
    api: httpx.Client, certified: Certified
) -> None:
    page = api.get(f"/jobs/{certified(40).id}/view", headers=PAGE).text
    curve, histogram = charts(page)
    assert curve["kind"] == "accuracy"
    assert curve["clean"] == 0.9
    assert [asked["name"] for asked in curve["asked"]] == ["36/255", "0.5"]
    assert [asked["certified"] for asked in curve["asked"]] == [0.6, 0.1]
    steps = zip(curve["x"], curve["certified"], curve["attacked"], strict=True)
    assert {(x, c, a) for x, c, a in steps if x in (36 / 255, 0.5)} == {
        (36 / 255, 0.6, 0.8), (0.5, 0.1, 0.5),
    }  # fmt: skip
    for low, share, high in zip(curve["low"], curve["certified"], curve["high"], strict=True):
        assert share is None or low < share < high
    assert histogram["kind"] == "radius"
    positive = [row for row in sample_rows(40) if row["radius"] > 0]
    assert sum(histogram["counts"]) == len(positive)
    rows = re.findall(r'data-name="(certified|95 % interval|left by attack)">([^<]*)<', page)
    assert [value for _, value in rows] == [
        "60.0 %", "30.0 – 80.0 %", "80.0 %", "10.0 %", "0.0 – 40.0 %", "50.0 %",
    ]  # fmt: skip
    told = text_of(page)
    assert "PASS The criterion: at least 50.0 % certified at ε = 36/255; reached 60.00 %." in told
    assert "Dvoretzky-Kiefer-Wolfowitz" in told


def test_how_it_was_certified_names_every_member(
    api: httpx.Client, store: Store, certified: Certified
) -> None:
    job = certified(40)
    report = report_of(job, 40) | {
        "failure_probability": 3e-9, "samples_digest": "sha256:" + "1" * 64,
        "counterexamples_digest": "sha256:" + "2" * 64, "certificate_digest": "sha256:" + "3" * 64,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }  # fmt: skip
    report["spec"] = {**job.spec, "seed": 17, "attack": {**job.spec["attack"], "seed": 23}}  # type: ignore[dict-item]
    store.write_json(store.report_path(job.id), report)
    told = text_of(api.get(f"/jobs/{job.id}/view", headers=PAGE).text)
    section = told.partition("How this was certified")[2].partition("Take it with you")[0]
    for name, count in report["by_method"].items():
        assert re.search(rf"{name} {count} · ", section), name
    for words in (
        "soundness sound", "failure probability 3e-09", "allowed by the float budget 0.0001",
        "difference to ONNX Runtime 1e-06", "seed 17", "1 start, seed 23", "audited 5.0 %",
        "python 3.11.7, torch 2.13.0", report["model"]["id"], report["graph_digest"],
        report["samples_digest"], report["counterexamples_digest"], report["certificate_digest"],
        report["result_digest"], report["dataset"]["id"], "ISO/IEC 24029-2",
        "Evidence towards Art. 15", "signed with ed25519",
    ):  # fmt: skip
        assert words in section, words
    assert "conforms" not in told


def test_every_download_that_a_jobs_page_offers_is_there(
    api: httpx.Client, store: Store, certified: Certified
) -> None:
    job = certified(40)
    assert job.model is not None
    store.counterexamples_path(job.id).write_bytes(b"PK")
    store.certificate_path(job.id).write_bytes(b"certificate")
    report = report_of(job, 40) | {"certificate_digest": "sha256:" + "3" * 64}
    store.write_json(store.report_path(job.id), report)
    page = api.get(f"/jobs/{job.id}/view", headers=PAGE).text
    offers = re.findall(r'href="([^"]+)"', page.partition("Take it with you")[2])
    found = {address.rpartition("/")[2] for address in offers if job.id in address}
    assert found == {
        "report.html", "report.json", "report.csv", "report.svg", "counterexamples.npz",
        "certificate", f"compare?a={job.id}",
    }  # fmt: skip
    for address in offers:
        if job.id in address:
            assert api.get(address, headers=PAGE).status_code == 200, address


def test_samples_show_every_column_and_what_broke_them(
    api: httpx.Client, store: Store, certified: Certified
) -> None:
    job = certified(40)
    rows = sample_rows(40)
    broken = [row["index"] for row in rows if any(row["falsified"])]
    pictures = [(k, PNG) for k in range(40)]
    (store.job_dir(job.id) / "prepared" / THUMBNAILS).write_bytes(pack_pictures(pictures))
    beside = [(2 * k + part, PNG) for k in broken for part in (0, 1)]
    path = store.counterexamples_path(job.id).with_name(COUNTEREXAMPLES)
    path.write_bytes(pack_pictures(beside))
    page = api.get(f"/jobs/{job.id}/samples/view?epsilon=1", headers=PAGE).text
    names = {"picture", "index", "label", "prediction", "margin", "radius", "verdict", "decided by"}
    assert set(re.findall(r'data-name="([^"]+)"', page)) == names
    addresses = re.findall(r'<img src="([^"]+)"', page.partition("<tbody>")[2])
    assert len(addresses) == 40 + 2 * len(broken)
    for address in addresses:
        answer = api.get(unescape(address))
        assert (answer.status_code, answer.content) == (200, PNG), address
    for wish, kept in (
        ("verdict=falsified", broken),
        ("label=3", [row["index"] for row in rows if row["label"] == 3]),
        ("method=crown", [row["index"] for row in rows if row["method"] == "crown"]),
        ("verdict=falsified&label=5", [k for k in broken if k % 10 == 5]),
    ):
        shown = api.get(f"/jobs/{job.id}/samples/view?epsilon=1&{wish}", headers=PAGE).text
        assert [int(k) for k in re.findall(r'data-name="index">(\d+)<', shown)] == kept, wish


def test_verdict_counterexample_and_bound_of_a_sample_are_of_one_epsilon(
    api: httpx.Client, store: Store, certified: Certified
) -> None:
    """Sample 10 is certified at 36/255 by crown, and broken at 0.5; 13 is undecided there."""
    job = certified(40)
    report = report_of(job, 40)
    report["model"]["class_names"] = [f"kind {k}" for k in range(10)]
    store.write_json(store.report_path(job.id), report)
    cells = {}
    for place in (0, 1):
        page = api.get(f"/jobs/{job.id}/samples/view?epsilon={place}", headers=PAGE).text
        for row in page.partition("<tbody>")[2].split("<tr>")[1:]:
            found = re.findall(r'data-name="([^"]+)">(.*?)</t[dh]>', row, re.DOTALL)
            told = {name: text_of(text) for name, text in found}
            cells[place, int(told["index"])] = told
    at_36, at_half = cells[0, 10], cells[1, 10]
    assert (at_36["verdict"], at_36["decided by"]) == ("certified", "crown")
    assert "broken" not in at_36["picture"]
    assert (at_half["verdict"], at_half["decided by"]) == (
        "falsified",
        "counterexample at ε = 0.5",
    )
    assert "broken at ε = 0.5" in at_half["picture"]
    assert cells[1, 13]["verdict"] == "undecided"
    assert cells[1, 13]["decided by"] == "– crown up to ε = 36/255"
    assert (at_36["label"], at_36["prediction"]) == ("0 kind 0", "0 kind 0")
    assert cells[0, 3]["label"] == f"3 {HOSTILE}"


def test_a_page_of_ten_thousand_samples_has_fifty_and_the_last_one_the_rest(
    api: httpx.Client, certified: Certified
) -> None:
    job = certified(10_003)
    last = api.get(f"/jobs/{job.id}/samples/view?part=200", headers=PAGE).text
    assert re.findall(r'data-name="index">(\d+)<', last) == ["10000", "10001", "10002"]
    assert "201 of 201" in text_of(last)
    assert "10 003 of 10 003 samples" in text_of(last)


def test_two_jobs_beside_each_other(api: httpx.Client, store: Store, certified: Certified) -> None:
    a, b = certified(40), certified(40)
    better = report_of(b, 40)
    better["results"][0] |= {"certified_accuracy": 0.75, "certified": 7}
    store.write_json(store.report_path(b.id), better)
    page = api.get(f"/compare?a={a.id}&b={b.id}", headers=PAGE).text
    (chart,) = charts(page)
    assert [line["name"] for line in chart["lines"]] == ["A", "B"]
    told = text_of(page)
    assert "36/255 60.0 % 75.0 % +15.0 points 80.0 % 80.0 %" in told
    certified_rows = sum(row["certified"][0] for row in sample_rows(40))
    assert f"36/255 40 {certified_rows} 0 0 {40 - certified_rows}" in told


def test_an_admin_sees_workers_queue_disk_and_versions(
    api: httpx.Client, redis: Redis, store: Store, make_submission: Certified, ledger: Ledger
) -> None:
    for _ in range(3):
        ledger.create(make_submission())
    facts = {"host": "<b>host</b>", "pid": "42", "device": "cpu", "memory_bytes": "1048576"}
    WorkerRegistry(redis, ttl_s=60).heartbeat("worker-7", facts)
    page = api.get("/system", headers=PAGE).text
    told = text_of(page)
    for words in (
        "queued 3", "running 0", "worker-7", "<b>host</b>", "42", "1.0 MiB", "wake-ups queued",
        "samples in the last minute", str(store.data_dir), "event streams open", "engine", "Python",
    ):  # fmt: skip
        assert words in told, words
    free = shutil.disk_usage(store.data_dir).free / 2**30
    shown = re.search(r"([\d.]+) (GiB|TiB|MiB) free of", told)
    assert shown is not None
    assert shown[2] != "GiB" or float(shown[1]) == pytest.approx(free, rel=0.2)


def weight(api: httpx.Client, address: str) -> int:
    """Bytes of a page with all it loads but pictures."""
    answer = api.get(address, headers=PAGE)
    assert answer.status_code == 200
    assets = set(re.findall(r'(?:src|href)="(/console/[^"]+)"', answer.text))
    return len(answer.content) + sum(len(api.get(asset).content) for asset in assets)


def test_a_page_is_light_however_much_there_is_to_show(
    api: httpx.Client,
    store: Store,
    ledger: Ledger,
    make_submission: Certified,
    certified: Certified,
) -> None:
    job = certified(40)
    grid = [point / 130 for point in range(101)]
    report = report_of(job, 40)
    report["curve"] = {"epsilon": grid, "certified_accuracy": [0.9 - x for x in grid]}
    report["model"]["layers"] = [
        {"name": f"features.{k}.parametrizations.weight", "kind": "conv2d", "shape": [64, 32, 32]}
        for k in range(100)
    ]
    row = report["results"][0]
    report["results"] = [{**row, "epsilon": k / 7, "epsilon_exact": f"{k}/7"} for k in range(1, 11)]
    store.write_json(store.report_path(job.id), report)
    flags = {"certified": [False] * 10, "falsified": [False] * 10}
    lines = [json.dumps({**each, **flags}) + "\n" for each in sample_rows(40)]
    store.samples_path(job.id).write_text("".join(lines))
    plan = {
        "method": "emma", "recipe": "fast", "norm": "l2", "epsilon": "1/2", "seed": 3,
        "architecture": "cifar-6c2f",
        "hyperparameters": {
            "epochs": 1000, "batch_size": 8, "learning_rate": 0.1, "optimizer": "adam",
        },
    }  # fmt: skip
    data = DatasetSource(kind="digits", name="digits", split="train")
    names = ("loss", "accuracy", "robust", "validation_accuracy", "validation_robust")
    history = [
        {"epoch": epoch, **dict.fromkeys(names, 1 - 1 / (3 + epoch))} for epoch in range(1, 1001)
    ]
    trainings = [
        make_submission(
            kind="train", training=plan, training_dataset=data, spec={}, model=None, dataset=None
        )
        for _ in range(2)
    ]
    for training in trainings:
        store.job_dir(training.id)
        store.training_dir(training.id).mkdir()
        store.write_json(store.training_dir(training.id) / "history.json", {"history": history})
        ledger.create(training)
    conclude(store, ledger, trainings[0], "succeeded", samples=0)
    for _ in range(100):
        conclude(store, ledger, make_submission(), "succeeded", samples=0)
    views = [f"/jobs/{each.id}/view" for each in (job, *trainings)]
    pages = ["/", "/?status=succeeded", "/compare", f"/compare?a={job.id}&b={job.id}", *views]
    weights = {address: weight(api, address) for address in pages}
    print(weights)
    assert max(weights.values()) <= 150_000, weights
    # The last epoch is among those shown, and all of them are a click away.
    ended, running = (api.get(address, headers=PAGE).text for address in views[1:])
    assert charts(ended)[0]["x"][-1] == charts(running)[0]["x"][-1] == 1000
    assert '<th scope="row">1000</th>' in ended
    assert f'href="/jobs/{trainings[0].id}/training"' in ended
    assert "The curve as a table" not in running


class Controls(HTMLParser):
    """Fields of a form, the labels of fields, and texts by the id of their element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: list[dict[str, str | None]] = []
        self.labelled: set[str | None] = set()
        self.texts: dict[str, str] = {}
        self._open: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("input", "select", "textarea") and values.get("type") != "hidden":
            self.fields.append(values)
        if tag == "label":
            self.labelled.add(values.get("for"))
        if tag == "p":
            self._open.append(values.get("id"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1]:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data


@pytest.mark.parametrize("address", ["/new", "/train"])
def test_every_field_of_a_form_has_a_name_and_an_explanation(
    api: httpx.Client, address: str
) -> None:
    form = Controls(api.get(address, headers=PAGE).text)
    assert len(form.fields) >= 14
    for field in form.fields:
        assert field.get("id") in form.labelled, field
        help_text = form.texts.get(str(field.get("aria-describedby")), "")
        assert len(help_text) >= 15, field
