"""Specs and submissions: what crosses HTTP, the journal and Redis.

Records of jobs are in ``job_records``, reports and sample rows in ``report``.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.contract.catalogue.architectures import ARCHITECTURES, FAMILIES
from service.contract.catalogue.methods import METHODS
from service.contract.near_names import did_you_mean
from service.contract.schemas.architectures import checked_family, checked_layers
from service.contract.schemas.epsilons import Epsilon, epsilon_in_words

__all__ = [
    "MODEL_FILE",
    "TERMINAL",
    "AttackSpec",
    "Criterion",
    "DatasetSource",
    "JobKind",
    "JobStatus",
    "JobSubmission",
    "ModelSource",
    "Normalization",
    "Spec",
]

#: Role of the model file among the blobs of a model.
MODEL_FILE = "model"

JobKind = Literal["certify", "train"]
JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]

#: States that a job never leaves.
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

#: Largest finite float32, and the least normal one.
_FLOAT32_MAX, _FLOAT32_LEAST = 3.4028234663852886e38, 2.0**-126

#: One end of a range: for all inputs, or for each channel or feature.
RangeEnd = (
    Annotated[float, Field(allow_inf_nan=False)]
    | Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=100_000)
    ]
)

_PIXELS: list[RangeEnd] = [0.0, 1.0]

#: Largest seed, and number of samples: what numpy, torch and JSON readers all take exactly.
_MAX_SEED = 2**53 - 1


class Strict(BaseModel):
    """A value that refuses unknown fields and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AttackSpec(Strict):
    """PGD on what no bound certified, and on a random ``audit`` share of what one did."""

    steps: int = Field(default=40, ge=1, le=100_000, description="Gradient steps of a start.")
    restarts: int = Field(default=1, ge=1, le=10_000, description="Starts per sample.")
    audit: float = Field(
        default=0.05,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the certified samples that is attacked too.",
    )
    seed: int = Field(default=0, ge=0, le=_MAX_SEED, description="Of its random starts.")


class Normalization(Strict):
    """(x - mean) / std per channel, applied inside the network; epsilons stay in pixel units."""

    mean: list[float] = Field(
        min_length=1,
        max_length=4096,
        description="One number for all inputs, or one per channel or feature.",
        examples=[[0.1307]],
    )
    std: list[float] = Field(
        min_length=1, max_length=4096, description="As many, each > 0.", examples=[[0.3081]]
    )

    @model_validator(mode="after")
    def _usable(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise PydanticCustomError(
                "invalid_normalization",
                "mean has {mean} values and std has {std}: one pair per channel is needed",
                {"mean": len(self.mean), "std": len(self.std)},
            )
        if not all(abs(value) <= _FLOAT32_MAX for value in self.mean):
            raise PydanticCustomError(
                "invalid_normalization", "every mean must be a finite float32 number", {}
            )
        if not all(_FLOAT32_LEAST <= value <= _FLOAT32_MAX for value in self.std):
            raise PydanticCustomError(
                "invalid_normalization",
                "every std must be a finite float32 number > 0 (1.2e-38 or more)",
                {},
            )
        return self


class Criterion(Strict):
    """What the model has to reach: a certified accuracy at one of the epsilons that are asked."""

    epsilon: Epsilon = Field(description="One of `epsilons`.")
    certified_accuracy: float = Field(
        ge=0, le=1, allow_inf_nan=False, description="At least this share of the samples."
    )

    def reached_by(self, certified: int, samples: int) -> bool:
        """Whether ``certified`` of ``samples`` are enough, exactly: 0.6 is 6/10, not a float."""
        return certified >= Fraction(repr(self.certified_accuracy)) * samples


class Spec(Strict):
    """What to certify and how: the threat model, the method, the samples."""

    norm: Literal["l2", "linf"] = Field(description="In what a perturbation is measured.")
    epsilons: list[Epsilon] = Field(
        min_length=1,
        max_length=100,
        description="In the units of the data, which is pixels in [0, 1] unless `input_range` says "
        "otherwise; numbers or fractions as text.",
    )
    method: str = Field("auto", description="A name of GET /methods.")
    effort: Literal["quick", "standard", "exhaustive"] = Field(
        default="standard",
        description="How much work `auto` may do: 2e6, 2e7 or 2e9 plain forward passes per job, "
        "and with which bounds. Work, not time: equal jobs give equal reports.",
    )
    soundness: Literal["sound", "estimate"] = Field(
        "sound", description="`estimate`: a paper's own arithmetic, which proves nothing."
    )
    deterministic: bool = Field(
        True, description="`false` allows bounds that fail with a stated probability."
    )
    samples: Annotated[int, Field(ge=1, le=_MAX_SEED)] | Literal["all"] = Field(
        1000, description="The first N, or all."
    )
    indices: list[Annotated[int, Field(ge=0, lt=2**53)]] | None = Field(
        None, min_length=1, max_length=1_000_000, description="Positions, in place of `samples`."
    )
    normalization: Normalization | None = Field(
        None, description="Applied inside the network; epsilons stay in the data's own units."
    )
    input_range: list[RangeEnd] | None = Field(
        _PIXELS,
        min_length=2,
        max_length=2,
        description="[low, high] of valid inputs, in the units of the data and of epsilons; each a "
        "number, or a list with one for each channel or feature. `null`: any number is valid.",
        examples=[[0, 1], [0, 255], [[-2.1, 0], [2.6, 100]]],
    )
    clip: bool = Field(True, description="A perturbed input stays in `input_range`.")
    architecture: str | dict[str, JsonValue] | None = Field(
        None, description="Of a state dict: a name of GET /architectures, or a layer list."
    )
    output: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="The ONNX output with the class scores, where there are several.",
    )
    binary: bool = Field(
        False,
        description="The one output is a score: class 1 where it is above 0, class 0 below.",
    )
    summation: Literal["as-uploaded", "partial-sums"] = Field(
        default="as-uploaded",
        description="`partial-sums`: certify another file than the uploaded one, its network with "
        "wide sums written as sums of partial sums, which float32 costs less radius. The report is "
        "about that file, names both, and `links.rewritten` of the job has it: that is the one to "
        "deploy. Of the uploaded file nothing is certified then.",
        examples=["partial-sums"],
    )
    radius: bool = Field(True, description="Also the largest certified radius of every sample.")
    attack: AttackSpec | None = Field(
        default_factory=lambda: AttackSpec(),
        description="On what no bound certified; `null`: none.",
    )
    time_budget_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Worker seconds for the job; what is open by then is undecided.",
    )
    sample_time_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for each sample and epsilon in complete methods, in place of work.",
    )
    criterion: Criterion | None = Field(
        None, description="What has to be reached at one of the epsilons; the report judges it."
    )
    seed: int = Field(
        default=0, ge=0, le=_MAX_SEED, description="Of what is random in methods and comparisons."
    )

    @model_validator(mode="before")
    @classmethod
    def _unbounded_unclipped(cls, value: Any) -> Any:
        """Without a range nothing is clipped."""
        if not isinstance(value, dict) or value.get("input_range", ...) is not None:
            return value
        if value.get("clip"):
            said = '"clip": true needs a range to stay in: leave it out, or give "input_range"'
            error = PydanticCustomError("invalid_input_range", "{said}", {"said": said})
            row = InitErrorDetails(type=error, loc=("clip",), input=True)
            raise ValidationError.from_exception_data("Spec", [row])
        return {**value, "clip": False}

    @field_validator("input_range")
    @classmethod
    def _usable_range(cls, value: list[RangeEnd] | None) -> list[RangeEnd] | None:
        if value is None:
            return None
        low, high = (end if isinstance(end, list) else [end] for end in value)
        if 1 not in (len(low), len(high)) and len(low) != len(high):
            raise PydanticCustomError(
                "invalid_input_range",
                "low has {low} values and high has {high}: one pair per channel or feature",
                {"low": len(low), "high": len(high)},
            )
        count = max(len(low), len(high))
        pairs = zip(low * (count // len(low)), high * (count // len(high)), strict=True)
        for place, (least, most) in enumerate(pairs):
            if not -_FLOAT32_MAX <= least < most <= _FLOAT32_MAX:
                where = f" of feature {place}" if count > 1 else ""
                raise PydanticCustomError(
                    "invalid_input_range",
                    "low{where}, {low}, must be below high, {high}, and both must be float32",
                    {"where": where, "low": least, "high": most},
                )
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in METHODS:
            raise PydanticCustomError(
                "unknown_method",
                "{given} is not a known method{near}; the known methods are {known}",
                {
                    "given": repr(value),
                    "near": did_you_mean(value, METHODS),
                    "known": ", ".join(METHODS),
                },
            )
        return value

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, value: JsonValue) -> JsonValue:
        named = isinstance(value, dict) and "name" in value
        name = value["name"] if isinstance(value, dict) and named else value
        known = (*ARCHITECTURES, *FAMILIES)
        if (isinstance(value, str) or named) and name not in known:
            raise PydanticCustomError(
                "unknown_architecture",
                "{given} is not a known architecture{near}; the known ones are {known}",
                {
                    "given": repr(name)[:80],
                    "near": did_you_mean(name, known),
                    "known": ", ".join(known),
                },
            )
        if isinstance(value, str) and value in FAMILIES:
            return {"name": name}
        if not isinstance(value, dict):
            return value
        return checked_family(value) if named else checked_layers(value)

    @field_validator("indices")
    @classmethod
    def _distinct(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and len(set(value)) != len(value):
            raise PydanticCustomError("invalid_indices", "every index may be given only once", {})
        return value

    @model_validator(mode="after")
    def _norm_of_method(self) -> Spec:
        norms = METHODS[self.method].norms
        if self.norm not in norms:
            raise PydanticCustomError(
                "unsupported_norm",
                "method {method} supports {norms}, not {norm}",
                {"method": self.method, "norms": ", ".join(norms), "norm": self.norm},
            )
        return self

    @model_validator(mode="after")
    def _criterion_of_an_epsilon(self) -> Spec:
        if self.criterion is not None and self.criterion.epsilon not in self.epsilons:
            raise PydanticCustomError(
                "invalid_criterion",
                "the criterion is about epsilon {epsilon}, which is not one of the epsilons asked: "
                "{asked}; add it to them",
                {
                    "epsilon": epsilon_in_words(self.criterion.epsilon),
                    "asked": ", ".join(map(epsilon_in_words, self.epsilons)),
                },
            )
        return self

    def normal(self) -> dict[str, Any]:
        """The JSON object that is stored: every field present, epsilons as exact text."""
        return self.model_dump(mode="json")


class ModelSource(Strict):
    """A model in the store: ``digest`` is ``sha256:...`` and names the blob.

    ``blobs``, of an ONNX export of several files: role -> digest, ``model`` and ``data:NAME`` for
    each file beside it; then ``digest`` is the model's id alone.
    """

    digest: str
    format: Literal["onnx", "safetensors", "pt"]
    name: str
    size: int
    blobs: dict[str, str] = Field(default_factory=dict)

    @property
    def file(self) -> str:
        """The digest of the model file itself."""
        return self.blobs.get(MODEL_FILE, self.digest)

    @property
    def data(self) -> dict[str, str]:
        """Digests of the files beside it, by name."""
        return {
            role.removeprefix("data:"): digest
            for role, digest in self.blobs.items()
            if role != MODEL_FILE
        }


class DatasetSource(Strict):
    """Where a worker finds the data; the API only resolves it, it reads no images.

    ``kind`` says how ``blobs`` (role -> digest) or ``paths`` (role -> absolute path) are read:
    ``npz`` role ``file`` with x, y; ``npy`` roles ``file`` and (if labelled) ``labels``;
    ``images_zip`` role ``file``, a zip of class folders; ``idx``
    roles ``images`` and ``labels``; ``cifar_python`` / ``cifar_binary`` role ``folder`` of batches;
    ``tiny_imagenet`` role ``folder`` of its public layout;
    ``images_folder`` role ``folder`` of class folders; ``digits`` comes with scikit-learn.
    ``vnnlib`` role ``file``: no data, but a property, which is verified in place of samples.
    ``id`` is the data set's id where it was uploaded. ``split`` is ``test`` or ``train`` of a
    registered name. ``samples`` is the number of samples where the bytes tell it.
    """

    kind: Literal[
        "npz",
        "npy",
        "images_zip",
        "idx",
        "cifar_python",
        "cifar_binary",
        "images_folder",
        "tiny_imagenet",
        "digits",
        "vnnlib",
    ]
    name: str
    id: str | None = None
    split: Literal["test", "train"] | None = None
    blobs: dict[str, str] = Field(default_factory=dict)
    paths: dict[str, str] = Field(default_factory=dict)
    samples: int | None = None


class JobSubmission(Strict):
    """An accepted submission, as the journal keeps it: all that is needed to run the job again.

    ``spec`` is ``Spec.normal()`` (read it with ``Spec.model_validate``); ``principal`` is whose it
    is, empty while no keys are configured. ``attempt`` counts the retries that were asked for.
    ``fingerprint`` is a digest of what is computed, ``idempotency_key`` a digest of the header.
    Under ``result_key`` an equal later submission finds the result (empty: it is never reused).
    ``webhook`` is the address that is notified of the end; it does not change what is computed.
    """

    id: str
    kind: JobKind
    spec: dict[str, JsonValue]
    model: ModelSource | None
    dataset: DatasetSource | None
    #: Of a training: its plan (``TrainingPlan.normal()``) and the samples it is trained on; spec
    #: and ``dataset`` are those of the certification that follows (empty and None without one).
    training: dict[str, JsonValue] | None = None
    training_dataset: DatasetSource | None = None
    created_at: str
    principal: str = ""
    attempt: int = Field(default=1, ge=1)
    fingerprint: str = ""
    idempotency_key: str | None = None
    result_key: str = ""
    webhook: str | None = None

    @property
    def vnnlib(self) -> DatasetSource | None:
        """The VNN-LIB file that is verified; None where samples are certified."""
        source = self.dataset
        return source if source is not None and source.kind == "vnnlib" else None

    @property
    def devices(self) -> int:
        """How many devices a worker must own to train it; a certification needs one."""
        asked = (self.training or {}).get("devices", 1)
        return asked if isinstance(asked, int) else 1
