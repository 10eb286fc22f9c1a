"""The console in a real browser: what a person does, and what an attacker would like to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import Client, JobFailed
from tests.e2e.console.conftest import ADMIN, BOB, PATIENCE_MS, Shot, Watched
from tests.e2e.live_service import JOB_S, SLOW_SPEC, LiveService
from tests.service.api.trainings import training

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
MODEL, DATA = EXAMPLES / "mnist_certified.onnx", EXAMPLES / "mnist_test.npz"
#: Images of the example that are certified.
IMAGES = 24

#: Never done before it is cancelled.
ENDLESS = {**SLOW_SPEC, "attack": {"steps": 50_000, "restarts": 1, "audit": 1.0, "seed": 0}}
AXE = (Path(__file__).with_name("vendor") / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def example(service: LiveService) -> str:
    """A finished job: the example, certified."""
    spec = {"norm": "l2", "epsilons": [0.3, 1], "samples": IMAGES}
    with Client(service.url, key=ADMIN) as client:
        job = str(client.certify(MODEL, DATA, spec)["id"])
        client.wait(job, timeout_s=JOB_S)
    return job


def test_a_model_is_uploaded_followed_and_its_report_read(admin: Watched, shot: Shot) -> None:
    """As docs/quickstart.md tells it, whose pictures are made here."""
    page = admin.open("/new")
    page.fill("[name=epsilons]", "1/0")
    page.set_input_files("[name=model]", MODEL)
    page.set_input_files("[name=dataset]", DATA)
    page.click("button:text-is('Certify')")
    page.wait_for_selector("[name=epsilons][aria-invalid]")
    assert "epsilon" in page.inner_text("[data-problem]")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert not _violations(page, "all" if scheme == "light" else "color-contrast")
        shot(page, f"new-refused-{scheme}")
    page.emulate_media(color_scheme="light")
    page.fill("[name=epsilons]", "0.3, 1")
    page.evaluate("document.querySelector('[data-problem]').hidden = true; scrollTo(0, 0)")
    page.set_viewport_size({"width": 1280, "height": 1180})
    shot(page, "docs-form", whole=False)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.click("text=Further settings")
    page.fill("[name=samples]", str(IMAGES))
    page.fill("[name='attack.audit']", "0.5")
    page.click("button:text-is('Certify')")
    page.wait_for_url("**/view")
    # Without a reload: the stream says that the job has ended.
    page.wait_for_selector("h2:text-is('How this was certified')", timeout=JOB_S * 1000)
    _charts_are_drawn(page, 2)
    assert page.locator("th a").all_inner_texts() == ["0.3", "1"]
    spec = json.loads(page.locator("details pre").last.text_content())
    assert spec["attack"]["audit"] == 0.5
    shot(page, "docs-job", whole=False)
    page.click("text=Report >> nth=0")
    page.wait_for_url("**/report.html")
    assert MODEL.name in page.inner_text("h1")
    shot(page, "docs-report", whole=False)
    # Where it is served nothing may run in it, which keeps axe out: look at the file itself.
    file = page.evaluate("document.documentElement.outerHTML")
    page.goto("about:blank")
    page.set_content(file)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert not _violations(page, "all" if scheme == "light" else "color-contrast")
        shot(page, f"report-{scheme}")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "report-phone")
    # On paper, A4 between its margins: light whatever the reader prefers, and nothing cut off.
    page.set_viewport_size({"width": 688, "height": 1015})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        page.evaluate(
            """[...document.querySelectorAll("table, dl, figure, p, h1, .card")].filter(
            e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map(e => e.outerHTML)"""
        )
        == []
    )
    shot(page, "report-printed")
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    admin.settled()


def test_samples_are_filtered_and_sorted(admin: Watched, example: str, shot: Shot) -> None:
    page = admin.open(f"/jobs/{example}/samples/view")
    page.click("th a:text-is('Radius')")
    page.wait_for_selector("th[aria-sort=ascending] a:has-text('Radius')")
    page.click("th a:has-text('Radius')")
    page.wait_for_selector("th[aria-sort=descending] a:has-text('Radius')")
    cells = page.locator("td[data-name=radius]").all_inner_texts()
    radii = [float("inf") if text == "unbounded" else float(text) for text in cells]
    assert radii == sorted(radii, reverse=True)
    assert len(radii) == IMAGES
    assert "sort=radius" in page.url
    page.wait_for_function(
        "() => [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    shot(page, "docs-samples", whole=False)
    wanted = page.locator(".verdict-of").first.inner_text()
    page.select_option("[name=verdict]", wanted)
    page.wait_for_function(
        "w => [...document.querySelectorAll('.verdict-of')].every(e => e.textContent === w)",
        arg=wanted,
    )
    page.go_back()
    page.wait_for_function("() => document.querySelectorAll('.samples tbody tr').length === 24")
    admin.settled()


def test_two_jobs_are_compared(admin: Watched, client: Client, example: str, shot: Shot) -> None:
    spec = {
        "norm": "l2", "epsilons": ["3/10", "0.9"], "method": "lipschitz", "attack": None,
        "samples": IMAGES,
    }  # fmt: skip
    other = client.certify(MODEL, DATA, spec)["id"]
    client.wait(other, timeout_s=JOB_S)
    page = admin.open("/compare")
    page.select_option("[name=a]", example)
    page.select_option("[name=b]", other)
    page.click("main button:text-is('Compare')")
    page.wait_for_selector("h2:text-is('Sample by sample')")
    assert page.locator("tr:has(th:text-is('0.3'))").count() == 2
    _charts_are_drawn(page, 1)
    shot(page, "compare")
    admin.settled()


def test_jobs_are_cancelled_and_retried_in_bulk_live(
    admin: Watched, client: Client, uploads: tuple[Path, Path], shot: Shot
) -> None:
    page = admin.open("/")
    jobs = [client.certify(*uploads, ENDLESS)["id"] for _ in range(2)]
    # They come into the list by themselves, and the first one is seen to run.
    page.wait_for_selector(f"#job-{jobs[1]}")
    page.wait_for_selector(f"#job-{jobs[0]} .state.running")
    shot(page, "jobs")
    page.click(f"#job-{jobs[1]} a")
    page.click("button:text-is('Cancel')")
    page.click("#dialog button:text-is('Cancel')")
    page.wait_for_selector(".state.cancelled")
    page.click("nav a:text-is('Jobs')")
    page.click("label:has-text('cancelled')")
    page.click("label:has-text('failed')")
    page.wait_for_selector("button:text-is('Retry 1')")
    page.click("button:text-is('Retry 1')")
    page.click("#dialog button:text-is('Retry 1')")
    page.wait_for_selector("button:text-is('Retry 0')")
    assert client.job(jobs[1])["status"] in ("queued", "running")
    page = admin.open("/?kind=certify")
    page.click("button:text-is('Cancel 2')")
    page.wait_for_selector("#dialog h2:has-text('Cancel 2 jobs?')")
    assert not _violations(page, "all")
    shot(page, "confirm")
    page.click("#dialog button:text-is('Cancel 2')")
    page.wait_for_selector(f"#job-{jobs[0]} .state.cancelled")
    assert {client.job(job)["status"] for job in jobs} == {"cancelled"}
    admin.settled()


def test_names_from_uploads_do_nothing(
    admin: Watched, client: Client, uploads: tuple[Path, Path], hostile_images: Path, shot: Shot
) -> None:
    form = {
        "spec": (None, json.dumps({"norm": "linf", "epsilons": ["2/255"], "method": "ibp"})),
        "model": ("<script>window.broken=1</script>.onnx", uploads[0].read_bytes()),
        "dataset": ("<svg onload=window.broken=1>.zip", hostile_images.read_bytes()),
    }
    job = client._http.post("/certify", files=form).json()["id"]
    client.wait(job, timeout_s=JOB_S)
    for path in ("/", f"/jobs/{job}/view", f"/jobs/{job}/samples/view", f"/compare?a={job}&b={job}",
                 "/new", f"/jobs/{job}/report.html"):  # fmt: skip
        page = admin.open(path)
        assert "<s" in page.inner_text("body"), "the name is shown as it is"
        admin.settled()


def test_every_page_can_be_used_by_everybody(admin: Watched, example: str, shot: Shot) -> None:
    page = admin.page
    for path in ("/", "/new", "/train", "/system", f"/compare?a={example}&b={example}",
                 f"/jobs/{example}/view", f"/jobs/{example}/samples/view", "/nowhere",
                 "/?status=failed&kind=train"):  # fmt: skip
        admin.open(path)
        name = path.strip("/").split("?")[0].replace("/", "-") or f"jobs{len(path)}"
        for scheme in ("light", "dark"):
            # Charts are drawn anew; of the rest only colours can differ.
            page.emulate_media(color_scheme=scheme)
            found = _violations(page, "all" if scheme == "light" else "color-contrast")
            assert not found, (path, scheme, found)
            shot(page, f"{name}-{scheme}")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function("() => document.documentElement.scrollWidth <= 390")
        shot(page, f"{name}-phone")
        page.set_viewport_size({"width": 1280, "height": 900})
    admin.settled()


def test_another_key_sees_nothing_of_it_and_logging_out_ends_the_session(
    chromium: Any, service: LiveService, example: str
) -> None:
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    bob = Watched(context.new_page(), service.url)
    page = bob.open(f"/jobs/{example}/view")
    page.fill("#key", "another key than there is")
    page.press("#key", "Enter")
    page.wait_for_selector("[role=alert]:visible")
    assert not _violations(page, "all")
    page.fill("#key", BOB)
    page.press("#key", "Enter")
    page.wait_for_selector("h1:text-is('Not found')")
    bob.open("/metrics")
    page.wait_for_selector("h1:text-is('Forbidden')")
    for path in ("/", "/compare"):
        bob.open(path)
        assert not _violations(page, "all"), path
    bob.open("/")
    page.wait_for_selector("h2:text-is('Nothing has been certified yet')")
    # A page of another origin can neither frame the console nor send its forms.
    answer = page.evaluate(
        "async job => (await fetch(`/jobs/${job}`, {method: 'DELETE'})).status", example
    )
    assert answer == 403
    bob.open("/docs")
    page.wait_for_selector(".opblock")
    bob.open("/")
    page.click("text=Log out")
    page.wait_for_selector("h1:text-is('Log in')")
    bob.open("/system")
    page.wait_for_selector("h1:text-is('Log in')")
    bob.settled()
    context.close()


def test_what_went_wrong_is_told_in_the_list_and_by_keyboard_alone(
    admin: Watched, client: Client, uploads: tuple[Path, Path], tmp_path: Path, shot: Shot
) -> None:
    # Told when the data are read: labels that the network does not have.
    broken = tmp_path / "broken.npz"
    with np.load(uploads[1]) as arrays:
        np.savez(broken, x=arrays["x"], y=arrays["y"] + 1000)
    with pytest.raises(JobFailed) as told:
        client.certify(uploads[0], broken, SLOW_SPEC).wait(timeout_s=JOB_S)
    code = told.value.problem["code"]
    page = admin.open("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    _tab_to(page, "e => e.name === 'status' && e.value === 'failed'")
    page.keyboard.press("Space")
    page.wait_for_url("**/?*status=failed*")
    page.wait_for_selector("tr .sub.error")
    assert code in page.inner_text("tr .sub.error")
    assert page.locator(".state.succeeded").count() == 0
    _tab_to(page, "e => e.name === 'status' && e.value === 'cancelled'")
    page.keyboard.press("Space")
    page.wait_for_selector(".state.cancelled")
    shot(page, "jobs-failed")
    _tab_to(page, "e => /^Delete [1-9]/.test(e.textContent)")
    page.keyboard.press("Enter")
    page.wait_for_selector("#dialog h2:has-text('Delete')")
    assert page.evaluate("document.getElementById('dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#dialog", state="hidden")
    assert page.evaluate("/^Delete/.test(document.activeElement.textContent)"), "where one was"
    _tab_to(page, "e => e.matches('tr:has(.error) th a')")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"[role=alert]:has-text('{code}')")
    assert not _violations(page, "all")
    shot(page, "job-failed")
    admin.settled()


def test_a_training_is_followed_to_its_curve(admin: Watched, client: Client, shot: Shot) -> None:
    wish = training(epochs=2, certify=None)
    page = admin.open("/train")
    page.select_option("[name=dataset]", wish["dataset"])
    page.select_option("[name=method]", wish["method"])
    page.fill("[name=epsilon]", wish["epsilon"])
    page.fill("[name=architecture]", "{")
    page.fill("[name=epochs]", str(wish["epochs"]))
    page.click("button:text-is('Train')")
    page.wait_for_selector("[name=architecture][aria-invalid]")
    assert "JSON" in page.inner_text("[data-problem]")
    page.fill("[name=architecture]", json.dumps(wish["architecture"]))
    page.click("text=Further settings")
    page.fill("[name=activation]", wish["activation"])
    page.fill("[name=certify]", "null")
    page.click("button:text-is('Train')")
    page.wait_for_url("**/view")
    page.wait_for_selector("h2:text-is('Training')")
    job = page.url.split("/")[-2]
    assert client.job(job)["plan"]["hyperparameters"]["activation"] == wish["activation"]
    client.wait(job, timeout_s=JOB_S)
    page.wait_for_selector("text=Weights", timeout=JOB_S * 1000)
    _charts_are_drawn(page, 2)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert not _violations(page, "all" if scheme == "light" else "color-contrast")
        shot(page, f"training-{scheme}")
    page.emulate_media(color_scheme="light")
    admin.settled()


def test_a_property_is_verified_from_the_form(
    admin: Watched, uploads: tuple[Path, Path], tmp_path: Path, shot: Shot
) -> None:
    inputs = range(36)
    names = [*(f"X_{k}" for k in inputs), *(f"Y_{k}" for k in range(3))]
    lines = [f"(declare-const {name} Real)" for name in names]
    lines += [f"(assert (>= X_{k} 0.4))(assert (<= X_{k} 0.6))" for k in inputs]
    path = tmp_path / "holds.vnnlib"
    path.write_text("\n".join([*lines, "(assert (<= Y_0 -1000))"]))
    page = admin.open("/new")
    page.set_input_files("[name=model]", uploads[0])
    page.set_input_files("[name=property]", path)
    page.click("button:text-is('Certify')")
    page.wait_for_url("**/view")
    page.wait_for_selector(".verdict:has-text('HOLDS')", timeout=JOB_S * 1000)
    assert not _violations(page, "all")
    shot(page, "property")
    admin.settled()


def _charts_are_drawn(page: Any, number: int) -> None:
    """Wait for exactly so many charts: htmx draws them a moment after it has put the text."""
    page.wait_for_function("n => document.querySelectorAll('.uplot').length === n", arg=number)


def _tab_to(page: Any, wanted: str) -> None:
    """Press Tab until what has the focus is what is looked for."""
    for _ in range(80):
        if page.evaluate(f"({wanted})(document.activeElement)"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no way by Tab to {wanted}")


def _violations(page: Any, rules: str) -> list[str]:
    """What axe finds serious or worse, by all of its rules or by one."""
    session = page.context.new_cdp_session(page)
    # Evaluated by the debugger, which the page's policy does not keep out.
    session.send("Runtime.evaluate", {"expression": f"if (!window.axe) {{ {AXE} }}"})
    options = {} if rules == "all" else {"runOnly": [rules]}
    expression = f"""axe.run(document, {json.dumps(options)}).then(result => JSON.stringify({{
        tried: result.passes.length + result.violations.length,
        wrong: result.violations.filter(v => ["serious", "critical"].includes(v.impact)).map(
            v => v.id + ": " + v.nodes.map(n => n.html.slice(0, 120)).join(" | "))}}))"""
    answer = session.send("Runtime.evaluate", {"expression": expression, "awaitPromise": True})
    session.detach()
    told = json.loads(answer["result"]["value"])
    assert told["tried"] > 0
    found: list[str] = told["wrong"]
    return found


def test_the_test_of_pages_sees_what_is_wrong_with_one(admin: Watched) -> None:
    page = admin.open("/system")
    page.evaluate("document.querySelector('h1').innerHTML = '<img src=/console/mark.svg>'")
    assert "image-alt" in "".join(_violations(page, "all"))
    page.evaluate("document.querySelector('.soft').style.color = '#eee'")
    assert "color-contrast" in "".join(_violations(page, "color-contrast"))
