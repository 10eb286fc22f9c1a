"""What the form of a training asks for, and what to know before filling it in."""

from __future__ import annotations

from service.console.views.field import NORMS, Field
from service.contract.catalogue.architectures import ARCHITECTURES, FAMILIES
from service.contract.catalogue.training_methods import TRAINING_METHODS

__all__ = ["TRAIN"]

TRAIN = (
    Field(
        "method",
        "Method",
        "The loss that makes the model certifiable.",
        "choice",
        "emma",
        tuple((name, f"{name}: {row.title}") for name, row in TRAINING_METHODS.items()),
    ),
    Field("norm", "Norm", "How the size of a change is measured.", "choice", "l2", NORMS),
    Field(
        "epsilon",
        "Epsilon",
        "The size of change to be robust against, in the units of the inputs.",
        "text",
        "36/255",
        required=True,
    ),
    Field(
        "recipe",
        "Recipe",
        "paper: the published schedule. fast: a short one. Or hyperparameters as JSON; GET "
        "/methods lists them, and where there is no recipe for this method and data, give an "
        "architecture.",
        "json-or-text",
        "fast",
    ),
    Field(
        "architecture",
        "Architecture",
        f"A name ({', '.join(ARCHITECTURES)}), a family with its sizes as JSON "
        f"({', '.join(FAMILIES)}), or a layer list. Empty: the recipe's.",
        "json-or-text",
    ),
    Field("epochs", "Epochs", "Passes over the data. Empty: the recipe's.", "number"),
    Field(
        "batch_size", "Batch size", "Samples per step. Empty: the recipe's.", "number", more=True
    ),
    Field("learning_rate", "Learning rate", "Empty: the recipe's.", "number", more=True),
    Field(
        "activation",
        "Activation",
        "Of an architecture given by name. Empty: the recipe's.",
        "text",
        more=True,
        placeholder="maxmin",
    ),
    Field(
        "test_dataset",
        "Data to certify on",
        "Empty: the test split of a registered data set, a tenth held out of an upload.",
        "text",
        more=True,
    ),
    Field(
        "certify",
        "Certification",
        "How the trained model is certified: a spec as JSON, null for not at all. Empty: at the "
        "epsilon of training, on all test samples.",
        "json",
        more=True,
        placeholder='{"epsilons": ["36/255"], "samples": 1000}',
    ),
    Field("devices", "Devices", "GPUs that share every batch.", "number", "1", more=True),
    Field(
        "sweep",
        "Sweep",
        "One hyperparameter and the values to train with, one model each.",
        "json",
        more=True,
        placeholder='{"alpha": [0.1, 0.5]}',
    ),
    Field(
        "seed", "Seed", "Of first values and the order of the samples.", "number", "0", more=True
    ),
)
