"""``certserve train``: what is typed is what is asked for, and nothing else is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from service.contract.training import TrainSpec
from service.ownership import StartError
from service.train_commands import _request, add_parser


def request(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), Path("data"))
    base = ["train", "--method", "bcp", "--dataset", "mine", "--epsilon", "36/255"]
    return _request(parser.parse_args([*base, *arguments]))


def test_what_is_left_out_is_left_to_the_recipe() -> None:
    assert request() == {
        "method": "bcp",
        "dataset": "mine",
        "epsilon": "36/255",
        "norm": "l2",
        "seed": 0,
        "recipe": "fast",
    }


def test_every_option_arrives_as_the_service_takes_it() -> None:
    wish = request(
        *("--test-dataset", "mnist", "--epochs", "3", "--batch-size", "8", "--seed", "4"),
        *("--recipe", '{"base": "paper", "clip_norm": 1}', "--certify", "null"),
        *("--architecture", '{"name": "liresnet", "depth": 2}', "--activation", "maxmin"),
    )
    spec = TrainSpec.model_validate(wish)
    assert (spec.test_dataset, spec.epochs, spec.batch_size, spec.seed) == ("mnist", 3, 8, 4)
    assert spec.recipe == {"base": "paper", "clip_norm": 1}
    assert (spec.architecture, spec.activation) == ({"name": "liresnet", "depth": 2}, "maxmin")
    assert spec.certify is None


def test_json_that_is_none_is_refused() -> None:
    with pytest.raises(StartError, match="no JSON"):
        request("--recipe", "{epochs: 3}")
