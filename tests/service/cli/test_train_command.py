"""``certserve train``: what is typed is what is asked for, and nothing else is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.cli import train as train_commands
from service.cli.main import EPSILONS, main
from service.cli.spec_options import one_by_one
from service.cli.train import _keep_sweep, _request, add_parser
from service.client import Client, Job, JobFailed
from service.contract.schemas.training_plans import TrainSpec, certification_spec
from service.supervisor.instance_lock import StartError


def request(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), Path("data"))
    base = ["train", "--method", "bcp", "--dataset", "mine", "--epsilon", "36/255"]
    return _request(parser.parse_args([*base, *arguments]))


def test_what_is_left_out_is_left_to_the_method_and_its_recipe() -> None:
    assert request() == {
        "method": "bcp",
        "dataset": "mine",
        "epsilon": "36/255",
        "seed": 0,
        "recipe": "fast",
    }


def test_every_option_arrives_as_the_service_takes_it() -> None:
    wish = request(
        *("--test-dataset", "mnist", "--epochs", "3", "--batch-size", "8", "--seed", "4"),
        *("--recipe", '{"base": "paper", "clip_norm": 1}', "--certify", "null"),
        *("--architecture", '{"name": "liresnet", "depth": 2}', "--activation", "maxmin"),
        *("--devices", "2", "--norm", "linf"),
    )
    spec = TrainSpec.model_validate(wish)
    assert (spec.test_dataset, spec.epochs, spec.batch_size, spec.seed) == ("mnist", 3, 8, 4)
    assert spec.recipe == {"base": "paper", "clip_norm": 1}
    assert (spec.architecture, spec.activation) == ({"name": "liresnet", "depth": 2}, "maxmin")
    assert spec.certify is None
    assert (spec.devices, spec.norm) == (2, "linf")
    assert TrainSpec.model_validate(request()).norm == "l2"


def test_the_report_of_a_training_may_be_about_several_epsilons() -> None:
    given = one_by_one(["--certify-epsilon", "1/255", "2/255,0.1"], EPSILONS["train"])
    wish = request(*given, "--certify", '{"samples": 9}')
    assert wish["certify"] == {"samples": 9, "epsilons": ["1/255", "2/255", "0.1"]}
    plan = TrainSpec.model_validate(wish)
    spec = certification_spec(plan)
    assert spec is not None
    assert spec.normal()["epsilons"] == ["1/255", "2/255", "1/10"]
    with pytest.raises(StartError, match="needs a report"):
        request("--certify-epsilon", "1/255", "--certify", "null")


def test_the_values_of_a_sweep_are_what_json_makes_of_them() -> None:
    for typed, sent in (
        ("alpha=0.1,0.2", {"alpha": [0.1, 0.2]}),
        ("optimizer=sgd,adam", {"optimizer": ["sgd", "adam"]}),
        ('kappa_schedule=[{"points": [[0, 1]]}]', {"kappa_schedule": [{"points": [[0, 1]]}]}),
    ):
        assert request("--sweep", typed)["sweep"] == sent
    for wrong in ("alpha", "alpha=", "alpha=[0.1"):
        with pytest.raises(StartError, match="sweep"):
            request("--sweep", wrong)


def test_json_that_is_none_is_refused() -> None:
    with pytest.raises(StartError, match="not JSON"):
        request("--recipe", "{epochs: 3}")


@pytest.mark.parametrize("model", ["0" * 64, None])
def test_a_model_whose_certification_failed_is_kept(
    model: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = {"code": "budget_exhausted", "detail": "it took too long"}
    job = {"id": "j", "status": "failed", "model_id": model, "error": error}

    class Service(Client):
        def train(self, request: Any) -> dict[str, Any]:
            return job

        def wait(self, job_id: str, **options: Any) -> dict[str, Any]:
            raise JobFailed(job)

        def model_file(self, model_id: str, part: str = "onnx") -> bytes:
            return part.encode()

        def training(self, job_id: str) -> dict[str, Any]:
            return {"history": []}

        def training_chart(self, job_id: str) -> bytes:
            return b"<svg/>"

    monkeypatch.setattr(train_commands, "Client", Service)
    out = tmp_path / "kept"
    arguments = ["train", "--method", "bcp", "--dataset", "mnist", "--epsilon", "0.1"]
    assert main([*arguments, "--url", "http://localhost:9", "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert "budget_exhausted: it took too long" in shown.err
    if model is None:
        assert not out.exists()
    else:
        kept = {"model.onnx", "weights.safetensors", "training.json", "training.svg"}
        assert {path.name for path in out.iterdir()} == kept
        assert "trained, but not certified" in shown.out


@pytest.mark.parametrize(("met", "status"), [([False, True], 0), ([False, False], 1), ([], 0)])
def test_a_sweep_misses_its_criterion_where_all_of_its_models_do(
    met: list[bool], status: int, tmp_path: Path
) -> None:
    class Service(Client):
        def job(self, job_id: str) -> Job:
            return Job(self, {"id": job_id, "model_id": "m"})

        def model_file(self, model_id: str, part: str = "onnx") -> bytes:
            return b""

        def training(self, job_id: str) -> dict[str, Any]:
            return {"history": []}

        def training_chart(self, job_id: str) -> bytes:
            return b"<svg/>"

        def report(self, job_id: str, suffix: str = "json") -> bytes:
            wish = {"epsilon": "1/2", "certified_accuracy": 0.5, "met": met[int(job_id[-1])]}
            row = {"epsilon": 0.5, "certified_accuracy": 0.25}
            return json.dumps({"criterion": wish, "results": [row]}).encode()

    models = [
        {
            "value": k,
            "error": None,
            "links": {"self": f"/jobs/j.{k}", "report": f"/jobs/j.{k}/report"},
        }
        for k in range(len(met))
    ]
    links = {"cascade": None, "pareto": None}
    job = {"id": "j", "plan": {"sweep": {"name": "alpha"}}, "models": models, "links": links}
    with Service("http://localhost:9") as client:
        assert _keep_sweep(client, job, tmp_path / "out", Console(quiet=True)) == status
