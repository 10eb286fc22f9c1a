"""Every command and every piece of Python in the documentation does what the page says of it.

They run against a real service, each page in a folder of its own with the files that it names. A
new block is run without a word more; what is not run stands in ``NOT_RUN`` with the reason.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from check.verify import main as check
from service.cli.main import main
from service.client import Client
from tests.e2e.documentation.blocks import Block, blocks_of, statements
from tests.e2e.live_service import JOB_S, SLOW_SPEC, LiveService

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
#: Drawings, proofs, tables of figures; and containers, which docker/smoke.sh starts.
LEFT_OUT = {
    *("architecture.md", "verification.md", "results.md", "testing.md", "soundness.md"),
    "docker.md",
}
PAGES = sorted(
    {ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / n for n in LEFT_OUT}
)

#: What of a command or of a piece of Python, and why it is not run here.
NOT_RUN = {
    "make demo": "tests/e2e/cli/test_certify_command.py",
    "make test": "runs this one",
    "make install": "made what this test runs in",
    "certserve doctor": "tests/service/cli/test_doctor.py: it imports torch apart",
    "certserve serve": "the service of this test is there already",
    "for part in journal": "tests/e2e/durability/test_backup.py",
    "pip install s3fs": "tests/service/contract/storage/test_object_store.py",
    "export CERTSERVE_STORE_URL": "the same",
    "CERTSERVE_DATA_DIR=/var": "the same",
    "benchmarks.gpu.train": "needs a GPU",
    "tf2onnx": "a sketch of three libraries",
}
#: What a page leaves to its reader, and what it is here.
INSTEAD: tuple[tuple[str, str], ...] = (
    ("http://127.0.0.1:8000", "$URL"),
    ("localhost:8000", "$URL"),
    (".venv/bin/certserve", "certserve"),
    ("01M7YZ6QDYQJZWA42D7H2K9HT5", "$ID"),
    (" JOB", " $ID"),
    ("3f9a...", "$SIGNING"),
    ("revoke ID", "revoke $KEY_ID"),
    # The example takes a minute; three of its images and one bound do not.
    ('"epsilons": ["3/10", 1]', '"samples": 3, "method": "lipschitz", "epsilons": ["3/10", 1]'),
    ("--samples 20", "--samples 3 --method lipschitz"),
    ("--samples 100", "--samples 2"),
    ("--samples 50", "--samples 3 --method ibp"),
    # What is sent there is a network for MNIST.
    ("model=@net.onnx -F dataset=mnist", "model=@mnist_0.1.onnx -F dataset=mnist"),
)
#: What is refused here, since this service has seen other things, and the code of the refusal.
REFUSED = {'"expected_count": 3': "count_changed"}
QUICK: dict[str, Any] = {"norm": "l2", "epsilons": [0.01], "samples": 3}


class Reader:
    """Somebody who types what a page says, in a folder with the files that it speaks of."""

    def __init__(self, service: LiveService, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.values = {
            "URL": service.url,
            "ID": "",
            "KEY": "none is needed here",
            "DATA": str(folder / "elsewhere"),
            "KEY_ID": "",
        }

    def shell(self, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
        """Run a block's commands one after the other; each has to do what it is for."""
        text = block.text
        for told, meant in INSTEAD:
            text = text.replace(told, meant)
        for command in statements(text):
            if any(part in command for part in NOT_RUN):
                continue
            where = f"{block.page}:{block.line}: {command}"
            if "/cancel" in command:
                self.values["ID"] = self._job(SLOW_SPEC)
            elif "$ID" in command and not self.values["ID"]:
                self.values["ID"] = self._job(QUICK)
                self._ended()
            words = shlex.split(re.sub(r"\$(\w+)", lambda v: self.values.get(v[1], v[0]), command))
            if words[:2] == ["python", "-m"]:
                self._module(words[2:])
            elif words[0] == "certserve-check":
                assert check(words[1:]) == 0, where
            elif words[0] == "certserve":
                self._certserve(words[1:], where, capsys)
            else:
                self._http(command, where)

    def _job(self, spec: dict[str, Any]) -> str:
        with Client(self.service.url) as client:
            return client.certify(Path("net.onnx"), Path("test.npz"), spec).id

    def _ended(self) -> None:
        """Wait for the job of the last command, which has to succeed."""
        with Client(self.service.url) as client:
            client.wait(self.values["ID"], timeout_s=JOB_S)

    def _http(self, command: str, where: str) -> None:
        script = 'curl() { command curl -sS --fail-with-body --max-time 60 "$@"; }\n' + command
        ended = subprocess.run(
            ["bash", "-euc", script],
            capture_output=True, text=True, timeout=90, env={**os.environ, **self.values},
        )  # fmt: skip
        code = next((code for part, code in REFUSED.items() if part in command), None)
        if code is not None and ended.returncode:
            assert json.loads(ended.stdout)["code"] == code, where
            return
        assert ended.returncode == 0, (where, ended.stdout[:1000], ended.stderr[:500])
        try:
            answer = json.loads(ended.stdout)
        except ValueError:
            return
        if "kind" in answer:
            self.values["ID"] = answer["id"]
            if answer["kind"] == "train":
                with Client(self.service.url) as client:
                    client.cancel(answer["id"])
            elif answer["status"] == "queued" and not command.endswith("retry"):
                self._ended()

    def _certserve(self, words: list[str], where: str, capsys: pytest.CaptureFixture[str]) -> None:
        if "report.json" in words and not Path("report.json").exists():
            self.values["ID"] = self._job(QUICK)
            self._ended()
            with Client(self.service.url) as client:
                Path("report.json").write_bytes(client.report(self.values["ID"]))
        capsys.readouterr()
        train = words[0] == "train"
        stop = _cancelled_when_accepted(self.service.url) if train else (lambda: None)
        try:
            status = main(words)
        finally:
            stop()
        said = capsys.readouterr()
        # What would train for hours is cancelled as soon as it has been accepted.
        assert status == (2 if train else 0), (where, said.err, said.out)
        assert not train or "cancelled" in said.err, (where, said.err)
        made = re.match(r"crt_([a-z0-9]+)_", said.out)
        self.values["KEY_ID"] = made[1] if made else self.values["KEY_ID"]

    def _module(self, words: list[str]) -> None:
        kept, sys.argv = sys.argv, words
        # Another test of this process may have imported it; here it is to begin anew.
        loaded = sys.modules.pop(words[0], None)
        try:
            runpy.run_module(words[0], run_name="__main__")
        finally:
            sys.argv = kept
            if loaded is not None:
                sys.modules[words[0]] = loaded


def _cancelled_when_accepted(url: str) -> Callable[[], None]:
    """Cancels the trainings that are begun from now on; what it gives ends that."""
    over = threading.Event()

    def watch() -> None:
        with Client(url) as client:
            while not over.is_set():
                for job in client.jobs(kind="train", status=("queued", "running"))["items"]:
                    client.cancel(job["id"])
                time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join(JOB_S)

    return stop


@pytest.fixture(scope="module")
def named_data(calm_service: LiveService, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Registered names, as noise of their shape: enough for a command that is cancelled."""
    rng = np.random.default_rng(0)
    shapes = {
        "mnist": (28, 28, 1),
        "cifar10": (32, 32, 3),
        "cifar100": (32, 32, 3),
        "tiny-imagenet": (64, 64, 3),
    }
    folder = tmp_path_factory.mktemp("named")
    with Client(calm_service.url) as client:
        for name, shape in shapes.items():
            for split, count in (("train", 30), ("test", 10)):
                path = folder / f"{name}-{split}.npz"
                x = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
                np.savez(path, x=x, y=np.arange(count) % 10)
                client.upload_dataset(path, name=f"{name}:{split}")


@pytest.fixture
def reader(
    calm_service: LiveService,
    uploads: tuple[Path, Path],
    named_data: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Reader:
    """In a folder with every file that a page names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CERTSERVE_DATA_DIR", str(calm_service.data_dir))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("net.onnx", "pipeline.onnx"):
        (tmp_path / name).write_bytes(uploads[0].read_bytes())
    for name in ("test.npz", "data.npz"):
        (tmp_path / name).write_bytes(uploads[1].read_bytes())
    limits = [f"(assert (>= X_{k} 0.4)) (assert (<= X_{k} 0.6))" for k in range(36)]
    names = [
        f"(declare-const {n} Real)" for n in (*(f"X_{k}" for k in range(36)), "Y_0", "Y_1", "Y_2")
    ]
    (tmp_path / "prop.vnnlib").write_text("\n".join([*names, *limits, "(assert (<= Y_0 -1000.0))"]))
    trained = tmp_path / "out" / "bcp-mnist" / "model.onnx"
    trained.parent.mkdir(parents=True)
    for path in (trained, tmp_path / "mnist_0.1.onnx"):
        _dense(path, (1, 28, 28), 10)
    _dense(tmp_path / "wine.onnx", (13,), 3)
    x = np.random.default_rng(0).normal(size=(5, 13)).astype(np.float32)
    np.savez(tmp_path / "wine.npz", x=x, y=np.arange(5) % 3)
    if request.node.callspec.params["page"].name == "inputs.md":
        whole = onnx.load(tmp_path / "net.onnx")
        onnx.save(
            whole, str(tmp_path / "net.onnx"), save_as_external_data=True,
            location="net.onnx.data", size_threshold=0,
        )  # fmt: skip
    made = Reader(calm_service, tmp_path)
    with Client(calm_service.url) as client:
        made.values["SIGNING"] = client.signing_keys()["public_key"]
    return made


def _dense(path: Path, shape: tuple[int, ...], classes: int) -> None:
    """One dense layer: a network for the data that a page names."""
    rng, size = np.random.default_rng(0), int(np.prod(shape))
    weights = [
        onnx.numpy_helper.from_array((rng.normal(size=s) / size).astype(np.float32), name)
        for name, s in (("w", (classes, size)), ("b", (classes,)))
    ]
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *s])
        for name, s in (("x", shape), ("y", (classes,)))
    ]
    graph = onnx.helper.make_graph(nodes, "dense", ends[:1], ends[1:], weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def _can_run(block: Block) -> bool:
    lacking = "skl2onnx" in block.text and find_spec("skl2onnx") is None
    return not lacking and not any(part in block.text for part in NOT_RUN)


def _python(block: Block, reader: Reader) -> None:
    """Run a block as a program that has read what it takes for granted."""
    text = block.text.replace("http://127.0.0.1:8000", reader.service.url)
    given = {"numpy": np, "images": np.zeros((2, 6, 6, 1), dtype=np.uint8), "labels": np.arange(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, f"{block.page}:{block.line}", "exec"), given)


def test_a_page_has_blocks_of_three_kinds(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n    curl a \\\n      b   # c\n    certserve d; certserve e\n\n"
        "    $ curl x\n    {}\n* item\n    more of it\n\n    import os\n\n"
        '      {"a": 1}\n'
    )
    first, *others = blocks_of(page)
    assert first.language == "shell"
    assert list(statements("curl a \\\n b  # c\ncertserve d; certserve e")) == [
        "curl a b", "certserve d", "certserve e",
    ]  # fmt: skip
    assert list(statements("$ curl x\n{}")) == ["curl x"]
    assert [block.language for block in others] == ["data"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_can_be_done(
    page: Path, reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks_of(page):
        if block.language == "shell":
            reader.shell(block, capsys)
        elif block.language == "python" and _can_run(block):
            _python(block, reader)


def test_what_is_not_run_is_there_and_the_rest_is_not_little() -> None:
    found = [block for page in PAGES for block in blocks_of(page)]
    for part in NOT_RUN:
        assert any(part in block.text for block in found), part
    kinds = [block.language for block in found]
    assert kinds.count("shell") >= 25
    assert kinds.count("python") >= 3
