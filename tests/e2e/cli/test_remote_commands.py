"""The commands that look at a running service, and the client that they use."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from check.verify import main as check
from service.cli.main import main
from service.client import Client, Job
from service.contract.catalogue.methods import METHODS
from tests.e2e.live_service import SLOW_SPEC, LiveService

pytestmark = pytest.mark.slow

Uploads = tuple[Path, Path]
Output = pytest.CaptureFixture[str]


def test_from_upload_to_report(
    calm_service: LiveService,
    uploads: Uploads,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    where = ("--data-dir", str(calm_service.data_dir))

    def run(*arguments: str) -> str:
        assert main([*arguments, *where]) == 0
        return capsys.readouterr().out

    # A data set of its own: the name stays with it, in reports of others too.
    with np.load(uploads[1], allow_pickle=False) as arrays:
        np.savez(tmp_path / "own.npz", x=arrays["x"][:9], y=arrays["y"][:9])
    model = run("upload", str(uploads[0])).strip()
    dataset = run("upload", str(tmp_path / "own.npz"), "--name", "mine").strip()
    assert model.startswith("sha256:")
    for collection, identity in (("models", model), ("datasets", dataset)):
        listed = json.loads(run(collection, "--json"))["items"]
        assert identity in [record["id"] for record in listed]
        assert identity in "".join(run(collection).split()).replace("│", "")
    with Client(calm_service.url) as client:
        spec = {"norm": "linf", "epsilons": ["1/255"], "samples": 5}
        job = client.certify(model, dataset, spec)
        assert isinstance(job, Job)
        done = job.wait(timeout_s=120)
        report = done.report
        assert [row["index"] for row in done.rows()] == [0, 1, 2, 3, 4]
    assert report["threat"]["norm"] == "linf"
    assert job.id in "".join(run("jobs", "--kind", "certify").split())
    shown = run("show", job.id)
    assert "succeeded" in shown
    assert "1/255" in shown
    assert json.loads(run("show", job.id, "--json"))["id"] == job.id
    assert "certified radius" in run("report", job.id)
    out = tmp_path / "new" / "rows.csv"
    run("report", job.id, "--out", str(out))
    assert len(list(csv.DictReader(out.open()))) == 5
    assert json.loads(run("report", job.id, "--json")) == report
    assert json.loads(run("report", job.id, "--json", "--out", str(out))) == report
    proofs = tmp_path / "new" / "certificate.safetensors"
    run("report", job.id, "--certificate", str(proofs))
    assert check([str(proofs)]) == 0
    with Client(calm_service.url) as client:
        slow = client.certify(*uploads, SLOW_SPEC, force=True)
        assert "cancelled" in run("cancel", slow.id)
        assert client.job(slow.id)["status"] == "cancelled"


def test_a_missed_criterion_ends_with_one_and_json_is_json(
    calm_service: LiveService, uploads: Uploads, capsys: Output
) -> None:
    common = ["certify", str(uploads[0]), "--dataset", str(uploads[1]), "--norm", "l2"]
    common += ["--epsilon", "50", "--samples", "5", "--method", "lipschitz"]
    common += ["--data-dir", str(calm_service.data_dir)]
    assert main([*common, "--criterion", "50", "0.9"]) == 1
    assert "criterion: FAIL, at least 90.00 % certified at epsilon 50" in capsys.readouterr().out
    assert main([*common, "--criterion", "50", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["criterion"]["met"] is True
    assert main([*common, "--criterion", "0.1", "0.9"]) == 2
    assert "epsilon" in capsys.readouterr().err
    assert main([*common, "--criterion", "50", "most"]) == 2


def test_a_property_decides_the_exit_status(
    calm_service: LiveService, uploads: Uploads, tmp_path: Path, capsys: Output
) -> None:
    box = "".join(f"(assert (>= X_{k} 0.4))(assert (<= X_{k} 0.6))" for k in range(36))
    names = "".join(f"(declare-const {n} Real)" for n in (*(f"X_{k}" for k in range(36)), "Y_0"))
    names += "(declare-const Y_1 Real)(declare-const Y_2 Real)"
    where = ["--data-dir", str(calm_service.data_dir)]
    for limit, status, word in (("-1000", 0, "holds"), ("1000", 1, "violated")):
        path = tmp_path / f"{word}.vnnlib"
        path.write_text(f"{names}{box}(assert (<= Y_0 {limit}))")
        assert main(["verify", str(uploads[0]), str(path), *where]) == status
        assert word in capsys.readouterr().out
    job = json.loads(_out(["jobs", "--json", "--limit", "1", *where], capsys))["items"][0]["id"]
    assert "violated" in _out(["report", job, *where], capsys)
    assert _out(["verify", str(uploads[0]), str(path), "--vnncomp", *where], capsys)[:3] == "sat"
    path.write_text("(declare-const X_0 Real)")
    assert main(["verify", str(uploads[0]), str(path), "--vnncomp", *where]) == 2
    printed = capsys.readouterr()
    assert printed.out == "error\n"
    assert "certserve: " in printed.err


def test_a_training_takes_files(
    calm_service: LiveService, uploads: Uploads, tmp_path: Path, capsys: Output
) -> None:
    layers = '{"input": [1, 6, 6], "layers": [{"kind": "flatten"}, {"kind": "linear", "out": 3}]}'
    arguments = ["train", "--method", "standard", "--dataset", str(uploads[1]), "--epochs", "1"]
    arguments += ["--epsilon", "0.1", "--architecture", layers, "--certify", "null", "--json"]
    arguments += ["--out", str(tmp_path / "out"), "--data-dir", str(calm_service.data_dir)]
    told = json.loads(_out(arguments, capsys))
    assert (told["job"]["kind"], told["report"]) == ("train", None)
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 0


def _out(arguments: list[str], capsys: Output) -> str:
    """What a command prints that ends well."""
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("show", "01J00000000000000000000000"), "unknown_job"),
     (("upload", "nothing.onnx"), "there is no file"),
     (("upload", __file__), "--kind"),
     (("report", "01J00000000000000000000000", "--out", "a.pdf"), ".svg")],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(
    calm_service: LiveService, capsys: Output, arguments: tuple[str, ...], told: str
) -> None:
    assert main([*arguments, "--data-dir", str(calm_service.data_dir)]) == 2
    assert told in capsys.readouterr().err


def test_without_a_service_the_way_to_one_is_told(tmp_path: Path, capsys: Output) -> None:
    assert main(["jobs", "--data-dir", str(tmp_path)]) == 2
    assert "certserve serve" in capsys.readouterr().err


def test_methods_need_no_service(capsys: Output) -> None:
    assert main(["methods", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["items"]] == list(METHODS)
