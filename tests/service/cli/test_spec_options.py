"""The spec that the options of ``certify`` make, and which option is at fault."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from service.cli.checks.verify import add_parser
from service.cli.checks.verify import spec_of as spec_of_property
from service.cli.spec_options import add_spec_options, one_by_one, spec_of
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import Spec
from service.supervisor.instance_lock import StartError


def spec(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    add_spec_options(parser)
    given = ["m.onnx", "--norm", "l2", *arguments]
    if not any(argument.startswith("--epsilon") for argument in arguments):
        given += ["--epsilon", "0.1"]
    options = parser.parse_args(one_by_one(given))
    assert options.model == "m.onnx"
    found = spec_of(options)
    Spec.model_validate(found)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epsilon", "0.005", "0.01", "1/2"],
        ["--epsilon", "0.005,0.01", "1/2"],
        ["--epsilon=0.005,0.01,1/2"],
        ["--epsilon", "0.005", "--epsilon=0.01", "1/2"],
        ["--epsilon", "0.005", "--epsilon", "0.01", "--epsilon", "1/2"],
    ],
)
def test_epsilons_are_given_one_by_one_or_in_a_row(arguments: list[str]) -> None:
    assert spec(*arguments, "--method", "crown")["epsilons"] == ["0.005", "0.01", "1/2"]


def test_what_follows_an_epsilon_and_is_none_stays_where_it_is() -> None:
    given = ["certify", "--epsilon", "0.1", "model.onnx", "--samples", "100", "--epsilon", "2"]
    assert one_by_one(given) == given
    assert one_by_one(["--epsilon", "much", "2"]) == ["--epsilon", "much", "--epsilon", "2"]
    assert one_by_one(["--epsilon"]) == ["--epsilon"]


def test_mean_and_std_are_a_normalization() -> None:
    given = spec("--mean", "0.1307", "--std", "0.3081")
    assert given["normalization"] == {"mean": [0.1307], "std": [0.3081]}
    given = spec("--mean", "0.49,0.48, 0.45", "--std", "[0.2,0.3,0.4]")
    assert given["normalization"] == {"mean": [0.49, 0.48, 0.45], "std": [0.2, 0.3, 0.4]}
    with pytest.raises(StartError, match="belong together"):
        spec("--mean", "0.5")
    with pytest.raises(StartError, match="--std takes numbers"):
        spec("--mean", "0.5", "--std", "a half")


def test_verify_takes_what_says_how_the_model_is_read_and_how_much_may_be_done() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), Path("data"))
    given = ["verify", "m.onnx", "p.vnnlib", "--mean", "0.1307", "--std", "0.3081"]
    options = parser.parse_args([*given, "--effort", "quick", "--timeout", "5", "--spec", "{}"])
    asked = PropertySpec.model_validate(spec_of_property(options)).normal()
    assert asked["normalization"] == {"mean": [0.1307], "std": [0.3081]}
    assert (asked["effort"], asked["time_budget_s"]) == ("quick", 5)
    with pytest.raises(StartError, match="--spec takes"):
        spec_of_property(parser.parse_args([*given, "--spec", "[1]"]))


def test_an_architecture_is_a_name_a_list_or_a_file_of_it(tmp_path: Path) -> None:
    layers = {"input": [4], "layers": [{"kind": "linear", "out": 2}]}
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(layers))
    assert spec("--architecture", json.dumps(layers))["architecture"] == layers
    assert spec("--architecture", str(path))["architecture"] == layers
    assert spec("--architecture", "cifar-6c2f")["architecture"] == "cifar-6c2f"
    path.write_text("{")
    with pytest.raises(StartError, match="holds no JSON"):
        spec("--architecture", str(path))
    with pytest.raises(StartError, match="no file"):
        spec("--architecture", str(tmp_path / "other.json"))


@pytest.mark.parametrize(
    ("option", "text"),
    [("--spec", "{"), ("--spec", "[1]"), ("--input-range", "0, 255"), ("--architecture", "{")],
)
def test_the_option_at_fault_is_named(option: str, text: str) -> None:
    with pytest.raises(StartError, match=f"^{option} takes"):
        spec(option, text)
