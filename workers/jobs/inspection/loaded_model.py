"""The uploaded model as the inspection reads it: a network, and the file that is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.network import Network
    from models.onnx.forms.file_labels import StatedLabels

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """The network in the units of the data, the ONNX that is deployed, and the normalisation
    outside it.

    one_row_only: the file runs at batch 1 only. output, other_outputs, binary, takes_bytes: of an
    ONNX file, as in ``ImportedOnnx``. stated: the labels that the file itself gives, unless the
    spec names the output that counts. class_names: what an ONNX file calls its classes, in
    the order of the scores, unless the spec names the output. pairing, warnings: of a state dict,
    which tensor went into which layer, and what is doubtful about that.
    """

    network: Network
    onnx: bytes
    outside: Mapping[str, Any] | None
    one_row_only: bool = False
    output: str | None = None
    other_outputs: Sequence[str] = ()
    binary: bool = False
    takes_bytes: bool = False
    stated: StatedLabels | None = None
    pairing: dict[str, str] | None = None
    warnings: Sequence[str] = ()
    class_names: Sequence[str] | None = None

    def facts(self) -> dict[str, Any]:
        """What every report says of the model."""
        network = self.network
        return {
            "layers": [
                {
                    "name": node.name,
                    "kind": network.layer(node.name).kind,
                    "shape": list(node.shape),
                }
                for node in network.nodes
            ],
            "parameters": network.parameter_count,
            "input_shape": list(network.input_shape),
            "classes": network.classes,
            "dropped_output": network.dropped_output,
            "graph_digest": network.graph_digest(),
            "normalization_outside": self.outside,
            "pairing": self.pairing,
            "output": self.output,
            "other_outputs": list(self.other_outputs),
            "binary": self.binary,
            "takes_bytes": self.takes_bytes,
            "class_names": None if self.class_names is None else list(self.class_names),
        }


def load_model(request: Mapping[str, Any], folder: Path) -> LoadedModel:
    """The model that a request names, read as ``inspect`` says. Raises ModelError."""
    from models.checkpoints.state_dict import read_network
    from models.errors import ModelError
    from models.onnx.exporter.export import export_onnx
    from models.onnx.forms.class_numbers import class_names
    from models.onnx.forms.external import self_contained
    from models.onnx.forms.file_labels import StatedLabels
    from models.onnx.forms.inner_values import refuse_other_values
    from models.onnx.forms.plain import Asked
    from models.onnx.importer import ImportedOnnx, read_onnx_bytes

    model, normalization = request["model"], request["normalization"]
    path = Path(model["path"])
    pairing: dict[str, str] | None = None
    warnings: list[str] = []
    imported: ImportedOnnx | None = None
    stated: StatedLabels | None = None
    names: Sequence[str] | None = None
    if model["format"] == "onnx":
        data = {name: Path(file) for name, file in model.get("data", {}).items()}
        whole = self_contained(path.read_bytes(), data)
        classifier = not request.get("property")
        asked = Asked(model.get("output"), bool(model.get("binary")), classifier=classifier)
        imported = read_onnx_bytes(whole, asked=asked)
        refuse_other_values(imported)
        network = imported.network
        if classifier and asked.output is None:
            names = class_names(whole, network.classes)
            if imported.others:
                stated = StatedLabels(whole, imported.output, imported.others, names or ())
        if data:
            (folder / "self-contained.onnx").write_bytes(whole)
    elif model["architecture"] is None:
        raise ModelError(
            "a state dict holds weights but no graph",
            code="missing_architecture",
            hint='name one in the spec: "architecture": "cifar-6c2f", or a layer list',
        )
    else:
        loaded = read_network(
            path,
            model["format"],
            model["architecture"],
            classifier=not request.get("property"),
        )
        network, pairing, warnings = loaded.network, dict(loaded.pairing), list(loaded.warnings)
    if normalization is not None and imported is not None and imported.takes_bytes:
        raise ModelError(
            "the model takes bytes: nothing can be normalised before it",
            code="invalid_normalization",
            hint='leave "normalization" out: the file itself has to divide its bytes',
        )
    if normalization is not None:
        network = network.normalized(normalization["mean"], normalization["std"])
    broken = network.non_finite()
    if broken:
        raise ModelError(
            f"these tensors hold NaN or infinity: {', '.join(broken[:5])}",
            code="non_finite_weights",
        )
    if network.classes < 2 and not request.get("property"):
        raise ModelError("a classifier needs at least two logits", code="too_few_classes")
    if imported is not None:
        return LoadedModel(
            network,
            imported.deployed,
            normalization,
            imported.batch == 1,
            output=imported.output,
            other_outputs=imported.others,
            binary=imported.binary,
            takes_bytes=imported.takes_bytes,
            stated=stated,
            class_names=names,
        )
    return LoadedModel(network, export_onnx(network), None, pairing=pairing, warnings=warnings)
