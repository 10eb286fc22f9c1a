"""The spec of a property: how to verify it; what is to be verified stands in the VNN-LIB file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.contract.schemas.epsilons import Epsilon
from service.contract.schemas.submissions import JobSubmission, Spec

__all__ = ["PropertySpec", "spec_of"]

#: The members of a spec that say something about a property.
FIELDS = (
    "method",
    "effort",
    "soundness",
    "time_budget_s",
    "sample_time_s",
    "seed",
    "architecture",
    "normalization",
    "output",
)


class PropertySpec(Spec):
    """A spec whose threat model is the property itself: norm, epsilons and samples are not given.

    Bounds of boxes are those of ``linf``, so that a method has to cover that norm.
    """

    norm: Literal["linf"] = "linf"
    epsilons: list[Epsilon] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _of_a_property(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name in Spec.model_fields and name not in FIELDS:
                raise PydanticCustomError(
                    "unknown_field",
                    "{name} has no meaning for a property; its spec may hold {known}",
                    {"name": name, "known": ", ".join(f for f in FIELDS if f in cls.model_fields)},
                )
        return value

    def normal(self) -> dict[str, Any]:
        """The JSON object that is stored: every member that says something about a property."""
        whole = super().normal()
        return {name: whole[name] for name in FIELDS if name in whole}


def spec_of(submission: JobSubmission) -> Spec:
    """The spec of a job, of a property or of a data set."""
    kind = PropertySpec if submission.vnnlib is not None else Spec
    return kind.model_validate(submission.spec)
