"""Over HTTP: images in class folders come back with their classes, or are refused at once."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import Client, ServiceError
from tests.e2e.live_service import JOB_S, LiveService

pytestmark = pytest.mark.slow

SPEC = {"norm": "linf", "epsilons": [0.01], "attack": None, "radius": False}


def archive(path: Path, members: dict[str, int], *, empty: str = "") -> Path:
    """A zip of 6x6 16-bit grey images, each of one value."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in members.items():
            image = io.BytesIO()
            Image.fromarray(np.full((6, 6), value, np.uint16)).save(image, "PNG")
            file.writestr(name, image.getvalue())
        if empty:
            file.writestr(empty, b"")
    return path


def test_nested_class_folders_of_16_bit_images(
    calm_service: LiveService, uploads: tuple[Path, Path], tmp_path: Path
) -> None:
    members = {f"set/n0{n}/images/{v}.png": v for n, v in ((1, 2000), (1, 9000), (2, 50000))}
    data = archive(tmp_path / "a.zip", members)
    with Client(calm_service.url) as client:
        job = client.certify(uploads[0], data, SPEC)
        client.wait(job["id"], timeout_s=JOB_S)
        report = json.loads(client.report(job["id"]))
        rows = [r.split(",") for r in client.report(job["id"], "csv").decode().splitlines()[1:]]
        page = client.report(job["id"], "html").decode()
    assert report["dataset"]["classes"] == {"n01": 0, "n02": 1}
    assert report["warnings"] == [
        "The data set has 2 class folders, the network 3 classes: check in dataset.classes that "
        "the labels are the network's (folders named by numbers keep their number)."
    ]
    assert page.index("2 class folders, the network") < page.index("<h2>")
    assert [row[1] for row in rows] == ["0", "0", "1"]
    # What was clamped to white had one margin for all.
    assert len({row[3] for row in rows}) == 3


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"train/a/1.png": 1, "test/a/1.png": 1}, "ambiguous_split"),
        ({"a\\1.png": 1}, "invalid_zip"),
        ({"a/1.png": 1, "A/1.png": 1}, "ambiguous_classes"),
    ],
)
def test_what_names_alone_tell_is_refused_at_once(
    calm_service: LiveService,
    uploads: tuple[Path, Path],
    tmp_path: Path,
    members: dict[str, int],
    code: str,
) -> None:
    with Client(calm_service.url) as client, pytest.raises(ServiceError) as caught:
        client.certify(uploads[0], archive(tmp_path / "a.zip", members), SPEC)
    assert caught.value.status == 422
    assert caught.value.problem["code"] == code
    assert caught.value.problem["hint"]
