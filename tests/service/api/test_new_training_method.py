"""A training method is one objective file and one row: a toy, which attacks inside its loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from pydantic import Field

from service.contract.catalogue.training_methods import TRAINING_METHODS, TrainingMethod
from service.contract.schemas.submissions import Strict
from service.contract.settings import Settings
from tests.workers.training.runs import CPU, images
from workers.training import loop, objectives
from workers.training.config import TrainingConfig
from workers.training.loop import Paused, train
from workers.training.objectives import OBJECTIVES, objectives_in

#: One step of the sign of the gradient from a random start, at ``options["attacked"]`` of epsilon.
FILE = """
import torch
import torch.nn.functional as F

from workers.training.objectives.bounded import Bounded, global_ball
from workers.training.objectives.objective import Objective

STARTS = []


def toy(graph, x, y, at, config):
    radius = config.options["attacked"] * at.epsilon
    start = torch.rand(x.shape, generator=at.generator(config)) * 2 - 1
    STARTS.append(start)
    moved = (x + radius * start).requires_grad_()
    loss = F.cross_entropy(graph.logits(graph.features(moved)), y)
    (slope,) = torch.autograd.grad(loss, moved, retain_graph=True)
    graph.forget()
    attacked = (x + radius * slope.sign()).clamp(0.0, 1.0).detach()
    logits = graph.logits(graph.features(attacked))
    return F.cross_entropy(logits, y), Bounded(logits, logits)


OBJECTIVES = {"toy": Objective(toy, global_ball)}
"""


class ToyOptions(Strict):
    attacked: float = Field(default=0.5, gt=0, le=1)


ROW = TrainingMethod(
    "toy",
    "Cross-entropy under one step of an attack",
    "about 3",
    "this test",
    bfloat16=False,
    compiled=False,
    certify_with={"method": "ibp"},
    options=ToyOptions,
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the toy, found as the file that somebody laid into the folder."""
    folder = tmp_path / "objectives"
    folder.mkdir()
    (folder / "toy_attack.py").write_text(FILE)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(folder)])
    monkeypatch.setitem(OBJECTIVES, "toy", objectives_in([str(folder)])["toy"])
    monkeypatch.setitem(TRAINING_METHODS, "toy", ROW)
    yield sys.modules[f"{objectives.__name__}.toy_attack"]
    del sys.modules[f"{objectives.__name__}.toy_attack"]


@pytest.fixture
def accepted(
    toy: Any, serve: Callable[[Settings], httpx.Client], settings: Settings
) -> dict[str, Any]:
    """The plan that POST /train makes of a wish for the toy."""
    client = serve(settings)
    listed = client.get("/methods").json()["training"]
    assert listed[-1] == {**ROW.described(), "options": ["attacked"]}
    wish = {
        "method": "toy",
        "dataset": "digits",
        "epsilon": 0.1,
        "architecture": "mnist-small",
        "epochs": 2,
        "batch_size": 16,
    }
    for recipe, field in (
        ({"options": {"attacked": 2.0}}, "recipe.options.attacked"),
        ({"options": {"rounds": 3}}, "recipe.options.rounds"),
        ({"attacked": 0.25}, "recipe.attacked"),
        ({"precision": "bfloat16"}, "recipe.precision"),
    ):
        answer = client.post("/train", json={**wish, "recipe": recipe})
        assert (answer.status_code, answer.json()["field"]) == (422, field)
    recipe = {"options": {"attacked": 0.25}, "validation_samples": 10}
    answer = client.post("/train", json={**wish, "recipe": recipe})
    assert answer.status_code == 202, answer.text
    plan: dict[str, Any] = client.get(f"/jobs/{answer.json()['id']}/training").json()["plan"]
    assert plan["hyperparameters"]["options"] == {"attacked": 0.25}
    # What is left out is in the plan too: a later default changes no run in the journal.
    answer = client.post("/train", json={**wish, "recipe": {"validation_samples": 10}})
    defaults = client.get(f"/jobs/{answer.json()['id']}/training").json()["plan"]
    assert defaults["hyperparameters"]["options"] == {"attacked": 0.5}
    return plan


def test_a_training_method_is_one_file_and_one_row(
    accepted: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    config, data = TrainingConfig.of_plan(accepted, ROW), images(74)
    assert config.options == {"attacked": 0.25}
    network, history = train(config, data, device=CPU)
    starts, toy.STARTS[:] = list(toy.STARTS), []
    assert len(history) == 2
    assert len(starts) == 8
    # Every step draws its own, and the same whenever it is taken: by a resumed run as well.
    assert len({start.numpy().tobytes() for start in starts}) == len(starts)
    pauses = iter([False, True])
    with pytest.raises(Paused):
        train(
            config,
            data,
            device=CPU,
            checkpoint=tmp_path / "checkpoint.safetensors",
            should_pause=lambda: next(pauses),
        )
    resumed, curve = train(config, data, device=CPU, checkpoint=tmp_path / "checkpoint.safetensors")
    assert [torch.equal(*pair) for pair in zip(starts, toy.STARTS, strict=True)] == [True] * 8
    assert curve == history
    for name, tensor in network.state_dict().items():
        assert np.array_equal(tensor, resumed.state_dict()[name])


def test_another_seed_attacks_from_elsewhere(toy: Any) -> None:
    for seed in (0, 1):
        config = TrainingConfig(
            "toy",
            "mnist-small",
            0.1,
            seed=seed,
            epochs=1,
            batch_size=16,
            options={"attacked": 0.5},
        )
        train(config, images(16), device=CPU)
    first, second = toy.STARTS
    assert not torch.equal(first, second)


def test_two_files_with_a_method_of_the_same_name_are_refused(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "objectives" / "toy_again.py").write_text(FILE)
    with pytest.raises(ValueError, match="'toy'"):
        objectives_in([str(tmp_path / "objectives")])
    del sys.modules[f"{objectives.__name__}.toy_again"]
