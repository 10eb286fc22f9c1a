"""A hyperparameter that changes over the run, as recipes and requests write it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.contract.schemas.submissions import Strict

__all__ = ["ScheduleSpec", "Share", "constant"]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class ScheduleSpec(Strict):
    """A value over the run: points (share of the run, value), clamped at both ends.

    ``linear`` and ``log`` interpolate, ``cosine`` falls or rises along half a wave, ``steps``
    holds the last point's value, ``smooth`` begins like t^4 and goes on as a line (Shi et al.
    2021).
    """

    points: list[tuple[Share, Amount]] = Field(
        min_length=1,
        max_length=100,
        description="(share of the run, value) one after another.",
        examples=[[[0.0, 1.0], [1.0, 0.0]]],
    )
    shape: Literal["linear", "log", "cosine", "smooth", "steps"] = Field(
        default="linear", description="How values go from one point to the next."
    )

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """JSON has no tuples."""
        if isinstance(value, dict) and isinstance(value.get("points"), list):
            points = [tuple(p) if isinstance(p, list) else p for p in value["points"]]
            return {**value, "points": points}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleSpec:
        shares = [share for share, _ in self.points]
        if shares != sorted(shares):
            raise PydanticCustomError("invalid_schedule", "points must follow one another", {})
        if self.shape == "log" and any(value <= 0 for _, value in self.points):
            raise PydanticCustomError("invalid_schedule", "a log schedule needs values > 0", {})
        return self


def constant(value: float) -> Any:
    """A field whose default is the same value all the run."""
    return Field(default_factory=lambda: ScheduleSpec(points=[(0.0, value)]))
