"""Write the published runs as plans, for ``benchmarks.gpu.train`` (which needs no pydantic).

    python -m benchmarks.gpu.plans out/plans

One file per row, in the order in which they are worth a GPU's time; ``--recipe paper`` writes the
papers' own epochs, which the LipConvnets and Tiny ImageNet have in any case (``fast`` of the former
is for processors). ``--devices 4`` adds ``NAME-on-4`` for the rows whose steps are worth sharing;
the one on Tiny ImageNet was published on four GPUs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from service.contract.schemas.training_plans import TrainSpec
from service.recipes.plans import plan_of

_LIPCONVNET: dict[str, Any] = {
    "method": "soc-crc",
    "dataset": "cifar10",
    "epsilon": "36/255",
    "recipe": "paper",
}
_CURVED = {"name": "lipconvnet", "head": "crc", "mean": [0.4914, 0.4822, 0.4465]}

#: Rows whose steps are long enough for several GPUs: 8 layers of boxes and norms, or many layers.
SHARED = (
    "3-cifar-local-lip-b",
    "4-cifar-local-lip-b-maxmin",
    "5-cifar-liresnet",
    "8-cifar-lipconvnet-15-crc",
    "11-tiny-imagenet-local-lip-b",
)

#: (name, request, published standard / PGD-100 / verified accuracy in per cent).
ROWS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "1-mnist-emma",
        {"method": "emma", "dataset": "mnist", "epsilon": 1.58, "recipe": "fast"},
        "96.3 / 78.2 / 55.8 (Local-Lip-G), 62.8 verified (GloRo MinMax)",
    ),
    (
        "2-cifar-bcp",
        {"method": "bcp", "dataset": "cifar10", "epsilon": "36/255"},
        "65.7 / 60.8 / 51.3",
    ),
    (
        "3-cifar-local-lip-b",
        {"method": "local-lip-b", "dataset": "cifar10", "epsilon": "36/255"},
        "70.7 / 64.8 / 54.3",
    ),
    (
        "4-cifar-local-lip-b-maxmin",
        {
            "method": "local-lip-b",
            "dataset": "cifar10",
            "epsilon": "36/255",
            "activation": "clamped-maxmin",
        },
        "77.4 / 70.4 / 60.7",
    ),
    (
        "5-cifar-liresnet",
        {"method": "emma", "dataset": "cifar10", "epsilon": "36/255"},
        "66.9 verified",
    ),
    (
        "6-mnist-local-lip-g",
        {"method": "local-lip-g", "dataset": "mnist", "epsilon": 1.58},
        "96.3 / 78.2 / 55.8",
    ),
    (
        "11-tiny-imagenet-local-lip-b",
        {
            "method": "local-lip-b",
            "dataset": "tiny-imagenet",
            "epsilon": "36/255",
            "recipe": "paper",
        },
        "trained on four GPUs; figures are not in these pages",
    ),
    (
        "7-cifar-lipconvnet-5-crc",
        {**_LIPCONVNET, "architecture": {**_CURVED, "depth": 5}},
        "not published for this depth and head",
    ),
    ("8-cifar-lipconvnet-15-crc", _LIPCONVNET, "79.4 / - / 67.0"),
    (
        "12-cifar-shiftnet",
        {"method": "one-lipschitz", "dataset": "cifar10", "epsilon": "36/255", "recipe": "paper"},
        "not published; 70.6 verified (BRONet, no extra data)",
    ),
    (
        "9-mnist-cap-l2",
        {"method": "cap", "dataset": "mnist", "norm": "l2", "epsilon": 1.58},
        "88.4 / 62.3 / 44.0",
    ),
    (
        "10-cifar-cap-l2",
        {"method": "cap", "dataset": "cifar10", "norm": "l2", "epsilon": "36/255"},
        "60.1 / 55.7 / 50.3",
    ),
)


def written(folder: Path, name: str, request: dict[str, Any], published: str) -> Path:
    """The row's file."""
    plan = plan_of(TrainSpec.model_validate(request), str(request["dataset"]), held_out=0.0)
    text = {"name": name, "dataset": request["dataset"], "published": published}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**text, "plan": plan.normal()}, indent=1))
    return path


def main() -> None:
    """Write ``NAME.json`` for every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", choices=("fast", "paper"), default="fast")
    parser.add_argument("--devices", type=int, default=1, help="and plans for so many GPUs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, request, published in ROWS:
        request = {"recipe": options.recipe, **request}
        print(written(options.folder, name, request, published))
        if options.devices > 1 and name in SHARED:
            shared = {**request, "devices": options.devices}
            print(written(options.folder, f"{name}-on-{options.devices}", shared, published))


if __name__ == "__main__":
    main()
