"""One service and one Chromium: a page that notes errors, requests that leave, and dialogs.

Screenshots of what the tests saw go to the folder CERTSERVE_SCREENSHOTS, where it is set.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from service.client import Client
from tests.e2e.live_service import LiveService

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ADMIN, BOB = "a" * 24, "b" * 24
CHROMIUM = os.environ.get("CERTSERVE_CHROMIUM") or shutil.which("chromium")
#: What a class folder or a file may be called by somebody who wants to break out of a page.
HOSTILE = "<img src=x onerror=window.broken=1>"

#: How long a page is waited for: a busy machine may take many times as long as an idle one.
PATIENCE_MS = 300_000

Page = Any


class Watched:
    """A page and everything in it that should not happen."""

    def __init__(self, page: Page, base: str) -> None:
        self.page, self.base = page, base
        self.wrong: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        # What the browser says of an answer that a test asks for on purpose is in ``expected``.
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            self.wrong.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.wrong.append(f"request: {request.url}")

    def open(self, path: str) -> Page:
        """Go to a page of the service."""
        self.page.goto(self.base + path)
        return self.page

    def settled(self) -> None:
        """Nothing that should not happen has happened."""
        assert not self.wrong, self.wrong
        assert self.page.evaluate("window.broken") is None


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service that knows two keys."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    live = LiveService(
        tmp_path_factory.mktemp("console") / "data", CERTSERVE_KEYS=f"admin={ADMIN},bob={BOB}"
    )
    try:
        live.start()
        yield live
    finally:
        live.close()


@pytest.fixture(scope="module")
def chromium(service: LiveService) -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def admin(chromium: Any, service: LiveService) -> Iterator[Watched]:
    """The page of somebody who has logged in with the admin's key."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    watched = Watched(context.new_page(), service.url)
    page = watched.open("/")
    page.fill("#key", "no such key at all")
    page.click("text=Log in >> nth=-1")
    page.wait_for_selector("[role=alert]:visible")
    page.fill("#key", ADMIN)
    page.press("#key", "Enter")
    page.wait_for_selector("h1:text-is('Jobs')")
    yield watched
    context.close()


@pytest.fixture
def client(service: LiveService) -> Iterator[Client]:
    with Client(service.url, key=ADMIN) as made:
        yield made


class Shot(Protocol):
    """Keeps a screenshot of the page, or of what the window shows of it (``whole=False``)."""

    def __call__(self, page: Page, name: str, *, whole: bool = True) -> None: ...


@pytest.fixture(scope="session")
def shot() -> Shot:
    """Keeps screenshots where a folder for them is given, small enough to be sent around."""
    folder = os.environ.get("CERTSERVE_SCREENSHOTS")

    def take(page: Page, name: str, *, whole: bool = True) -> None:
        if folder:
            path = Path(folder) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=path, full_page=whole)
            with Image.open(path) as picture:
                few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            few.save(path, optimize=True)

    return take


@pytest.fixture(scope="session")
def hostile_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of three class folders, one of them with a hostile name, of images of 6 x 6."""
    path = tmp_path_factory.mktemp("hostile") / "images.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("=1+1", HOSTILE, "zebra"):
            for number in range(2):
                file = BytesIO()
                Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).save(file, "PNG")
                archive.writestr(f"{name}/{number}.png", file.getvalue())
    return path
