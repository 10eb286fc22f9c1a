"""All training recipes: the published ones (``paper``) and ours (``fast``), one file per paper."""

from __future__ import annotations

from fractions import Fraction

from service.recipes import bcp, emma, gloro, local_lip, one_lipschitz, plain, soc
from service.recipes.linf import cap, colt, ctbench, expressive_losses, ours
from service.recipes.recipe import COSINE, Recipe

__all__ = ["RECIPES", "recipe_of"]

#: All recipes. Of several for one method and data set the one counts whose activation is asked for,
#: then the one of the norm and epsilon asked for, then of the norm, then the first.
RECIPES: tuple[Recipe, ...] = (
    *plain.ROWS,
    *bcp.ROWS,
    *local_lip.ROWS,
    *gloro.ROWS,
    *emma.ROWS,
    *one_lipschitz.ROWS,
    *soc.ROWS,
    *ours.ROWS,
    *colt.ROWS,
    *cap.ROWS,
    *ctbench.ROWS,
    *expressive_losses.ROWS,
)


def _row(
    method: str,
    dataset: str,
    name: str,
    norm: str,
    epsilon: Fraction | None,
    activation: str | None,
) -> Recipe | None:
    rows = [r for r in RECIPES if (r.method, r.dataset, r.name) == (method, dataset, name)]

    def fits(row: Recipe) -> tuple[bool, bool, bool]:
        wanted = activation is not None and row.settings.get("activation") == activation
        return wanted, row.norm == norm and Fraction(row.epsilon) == epsilon, row.norm == norm

    return max(rows, key=fits, default=None)


def recipe_of(
    method: str,
    dataset: str,
    name: str,
    *,
    norm: str = "l2",
    epsilon: Fraction | None = None,
    activation: str | None = None,
) -> Recipe | None:
    """The recipe's row; ``fast`` without one is the paper's in a tenth of the epochs."""
    found = _row(method, dataset, name, norm, epsilon, activation)
    paper = _row(method, dataset, "paper", norm, epsilon, activation)
    if found is not None or paper is None or name != "fast":
        return found
    settings = {
        **paper.settings,
        "epochs": max(1, round(int(paper.settings["epochs"]) / 10)),
        "learning_rate_schedule": COSINE,
        "warm_up": 0.05,
    }
    return Recipe(
        *(method, dataset, "fast", paper.architecture, paper.epsilon),
        f"a tenth of {paper.source}",
        settings,
        norm=paper.norm,
    )
