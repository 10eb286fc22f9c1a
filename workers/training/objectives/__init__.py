"""Training methods: each one a loss of (network, batch, schedules), in a file of its own.

A file in this folder, or in one below it, lists its methods in a table ``OBJECTIVES``; a new method
is found there. What users read of a method, and which bound certifies it, is its row in
``service/contract/catalogue/training_methods.py``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from workers.training.objectives.bounded import Bounded
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights

__all__ = ["OBJECTIVES", "Bounded", "Objective", "ScheduledWeights", "objectives_in"]


def objectives_in(folders: Iterable[str], package: str = __name__) -> dict[str, Objective]:
    """The methods of all modules in ``folders`` and below, which belong to ``package``.

    Raises ValueError where two files hold a method of the same name.
    """
    found: dict[str, Objective] = {}
    for module in pkgutil.walk_packages(folders, f"{package}."):
        for name, objective in getattr(import_module(module.name), "OBJECTIVES", {}).items():
            if name in found:
                raise ValueError(f"{module.name} holds {name!r}, which another file holds too")
            found[name] = objective
    return found


#: Methods by the name POST /train takes.
OBJECTIVES: dict[str, Objective] = objectives_in(__path__)
