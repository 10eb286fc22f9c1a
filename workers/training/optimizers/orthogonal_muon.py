"""Muon on the orthogonal group, for layers whose weight is an orthogonal matrix; NAdam for others.

Muon (Jordan et al. 2024) takes steps whose matrix has singular values near 1. Here the step stays
on the group: with momentum U of the gradient, A = W^T U - U^T W is the direction of descent along
it (skew: its exponential is a rotation); Newton-Schulz steps bring A's singular values near 1, and
W <- W (I - rate A) is W times a rotation to second order in the rate. Every few steps one
Newton-Schulz step W <- W (3 I - W^T W) / 2 takes back what that leaves. What is deployed is the
nearest orthogonal matrix in any case (``models.layers.one_lipschitz.orthogonal``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.one_lipschitz import OrthogonalChannels
from models.network import Network
from workers.training.precision import multiplies_bfloat16

__all__ = ["OrthogonalMuon", "near_orthogonal"]

MOMENTUM = 0.9
#: Newton-Schulz steps per direction, and their coefficients (Jordan et al. 2024): each lifts small
#: singular values 3.4 times, and those near 1 end between 0.68 and 1.21.
NEWTON_SCHULZ, COEFFICIENTS = 3, (3.4445, -4.775, 2.0315)
#: Steps between two repairs.
REPAIR = 4
#: Learning rate of biases and last layer, in those of the matrices.
OTHERS = 1 / 15
BETAS = (0.9, 0.99)


def near_orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix with its singular values brought near 1, multiplied in ``dtype``.

    They begin at most at 1: the first step divides by |(X X^T)^2|_F^(1/4), the eighth root of the
    sum of their eighth powers. It is there anyway, and close to the largest of them, where the
    usual Frobenius norm would cost one or two steps more.
    """
    a, b, c = COEFFICIENTS
    x = (matrix / (matrix.norm() + 1e-12)).to(dtype)
    for step in range(NEWTON_SCHULZ):
        square = x @ x.T
        fourth = square @ square
        if step == 0:
            size = fourth.to(matrix.dtype).norm().pow(0.25).clamp_min(1e-6).to(dtype)
            x, square, fourth = x / size, square / size**2, fourth / size**4
        x = a * x + (b * square + c * fourth) @ x
    return x


class OrthogonalMuon(torch.optim.NAdam):
    """Steps on the group for ``rotations`` (square, [n, n, 1, ...]), NAdam for ``others``."""

    def __init__(
        self,
        rotations: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(rotations), "weight_decay": 0.0, "scale": 1.0},
            {"params": list(others), "scale": OTHERS, "lr": lr * OTHERS},
        ]
        super().__init__(groups, lr=lr, betas=BETAS, weight_decay=weight_decay)

    @classmethod
    def of_network(
        cls, network: Network, parameters: Sequence[nn.Parameter], rate: float, decay: float
    ) -> OrthogonalMuon:
        """The weights of layers whose weight is on the group, and the rest."""
        layers = (network.layer(node.name) for node in network.nodes)
        on_group = {layer.weight for layer in layers if isinstance(layer, OrthogonalChannels)}
        rotations = [parameter for parameter in parameters if parameter in on_group]
        others = [parameter for parameter in parameters if parameter not in on_group]
        return cls(rotations, others, lr=rate, weight_decay=decay)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # NAdam's own brings states of old releases up to date, and knows no other states than its.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of everything that has a gradient."""
        group = self.param_groups[0]
        gradients = {p: p.grad for p in group["params"] if p.grad is not None}
        for parameter in gradients:
            # NAdam passes over what has none.
            parameter.grad = None
        loss = super().step(closure)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
            self._rotate(parameter, gradient, group["lr"])
        return loss

    def _rotate(self, parameter: nn.Parameter, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            # On the host: a GPU would be waited for at every look.
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum"].mul_(MOMENTUM).add_(gradient)
        dtype = torch.bfloat16 if multiplies_bfloat16(parameter.device) else parameter.dtype
        weight = parameter.detach().flatten(1)
        towards = gradient.add(momentum, alpha=MOMENTUM).flatten(1).to(dtype)
        rounded = weight.to(dtype)
        half = rounded.T @ towards
        turn = near_orthogonal((half - half.T).to(parameter.dtype), dtype)
        moved = weight.sub((rounded @ turn).to(parameter.dtype), alpha=rate)
        if int(state["step"]) % REPAIR == 0:
            moved = torch.addmm(moved, moved, moved.T @ moved, beta=1.5, alpha=-0.5)
        parameter.copy_(moved.view_as(parameter))
