"""What the form of a certification asks for, and what to know before filling it in."""

from __future__ import annotations

from service.console.views.field import NORMS, Field
from service.contract.catalogue.architectures import ARCHITECTURES
from service.contract.catalogue.methods import METHODS

__all__ = ["CERTIFY"]

CERTIFY = (
    Field(
        "norm",
        "Norm",
        "How the size of a change is measured.",
        "choice",
        "l2",
        NORMS,
    ),
    Field(
        "epsilons",
        "Epsilons",
        "The sizes of change to certify, separated by commas, in the units of the inputs. For "
        "images that is pixel values from 0 to 1: write 8/255 for eight grey levels.",
        "list",
        "36/255",
        required=True,
        placeholder="36/255, 0.5",
    ),
    Field(
        "method",
        "Method",
        "How robustness is proved. auto tries the cheapest bound first and spends more only on "
        "what is still open.",
        "choice",
        "auto",
        tuple((name, f"{name}: {row.title}") for name, row in METHODS.items()),
    ),
    Field(
        "samples",
        "Samples",
        "How many samples, from the first one on; all for every sample.",
        "number-or-text",
        "1000",
    ),
    Field(
        "architecture",
        "Architecture",
        "Only for weights without a graph (.safetensors, .pt): the name of what they belong to "
        f"({', '.join([*ARCHITECTURES][:4])}, ...) or a layer list as JSON. Leave it empty for "
        "ONNX.",
        "json-or-text",
        placeholder="cifar-6c2f",
    ),
    Field(
        "summation",
        "Sums",
        "partial-sums: certify another file than yours, the same network with wide sums in parts, "
        "which float32 costs less radius. The job's page has that file: it is the one to deploy.",
        "choice",
        "as-uploaded",
        (
            ("as-uploaded", "as-uploaded: the file itself"),
            ("partial-sums", "partial-sums: the file rewritten"),
        ),
        more=True,
    ),
    Field(
        "normalization",
        "Normalisation",
        "Mean and standard deviation per channel, where the model expects them and does not "
        "hold them itself. Epsilons stay in pixel units.",
        "json",
        placeholder='{"mean": [0.1307], "std": [0.3081]}',
        more=True,
    ),
    Field(
        "soundness",
        "Soundness",
        "sound: every certificate is a proof for the deployed float32 network. estimate: a "
        "paper's own arithmetic, to reproduce its figures; nothing is guaranteed then.",
        "choice",
        "sound",
        (("sound", "sound: proofs"), ("estimate", "estimate: NOT A PROOF")),
        more=True,
    ),
    Field(
        "deterministic",
        "Only what holds with certainty",
        "Unchecked, bounds may be used that hold except with a tiny probability, which is stated.",
        "flag",
        "true",
        more=True,
    ),
    Field(
        "clip",
        "Inputs stay in their valid range",
        "Changed inputs count only where they are still valid (pixels between 0 and 1).",
        "flag",
        "true",
        more=True,
    ),
    Field(
        "radius",
        "Find each sample's radius",
        "Also the largest certified radius of every sample, from which the curve is drawn.",
        "flag",
        "true",
        more=True,
    ),
    Field(
        "attack",
        "Attack what is not certified",
        "A search for counterexamples (PGD). It shows how much more could be proved at best.",
        "switch",
        "true",
        more=True,
    ),
    Field(
        "attack.steps", "Attack: steps", "Gradient steps of each start.", "part", "40", more=True
    ),
    Field("attack.restarts", "Attack: restarts", "Starts per sample.", "part", "1", more=True),
    Field(
        "attack.audit",
        "Attack: audit",
        "Share of the certified samples that is attacked too. It must never succeed there.",
        "part",
        "0.05",
        more=True,
    ),
    Field("attack.seed", "Attack: seed", "Of its random starts.", "part", "0", more=True),
    Field(
        "effort",
        "Effort",
        "How much work auto may spend: quick, standard or exhaustive (a hundred times standard).",
        "choice",
        "standard",
        tuple((name, name) for name in ("quick", "standard", "exhaustive")),
        more=True,
    ),
    Field(
        "time_budget_s",
        "Time budget (s)",
        "Seconds of worker time. What is open by then is undecided, and the report depends on the "
        "machine. Empty: a budget of work, so that equal jobs give equal reports.",
        "number",
        more=True,
    ),
    Field(
        "sample_time_s",
        "Time per sample (s)",
        "Seconds that a complete method may spend on a sample.",
        "number",
        more=True,
    ),
    Field(
        "indices",
        "Indices",
        "Instead of a number of samples: their places in the data set, separated by commas.",
        "numbers",
        more=True,
        placeholder="0, 17, 400",
    ),
    Field(
        "input_range",
        "Valid range of inputs",
        "[low, high], or a list of lows and one of highs per feature; null for no range. Empty: "
        "[0, 1].",
        "json",
        more=True,
        placeholder="[0, 1]",
    ),
    Field(
        "output",
        "Output",
        "Name of the ONNX output with the class scores, where there are several.",
        more=True,
    ),
    Field(
        "binary",
        "One score, two classes",
        "The graph has a single score: above the threshold is class 1.",
        "flag",
        more=True,
    ),
    Field(
        "criterion",
        "Criterion",
        "What the model has to reach; the report says at its top whether it does.",
        "json",
        placeholder='{"epsilon": "36/255", "certified_accuracy": 0.6}',
        more=True,
    ),
    Field("seed", "Seed", "Of everything random in the method.", "number", "0", more=True),
)
