"""Optimisers by name: Adam in one pass over each parameter is Adam."""

from __future__ import annotations

import torch

from tests.workers.training.runs import config_of
from workers.training.optimizers import OPTIMIZERS
from workers.training.trainer import build_network


def test_adam_on_a_processor_is_in_one_pass_and_torchs_own_but_for_rounding() -> None:
    network = build_network(config_of("standard", architecture="mnist-small"))
    parameters = list(network.parameters())
    twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    made = OPTIMIZERS["adam"](network, parameters, 0.01, 1e-3)
    plain = torch.optim.Adam(twins, lr=0.01, weight_decay=1e-3, foreach=False, fused=False)
    assert made.param_groups[0]["fused"]
    for step in range(5):
        for index, (parameter, twin) in enumerate(zip(parameters, twins, strict=True)):
            drawn = torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(10 * step + index)
            )
            # Half of them never had a gradient.
            parameter.grad = drawn * (torch.arange(drawn.numel()).reshape(drawn.shape) % 2)
            twin.grad = parameter.grad.clone()
        made.step()
        plain.step()
    torch.testing.assert_close(parameters, twins, rtol=1e-5, atol=1e-6)
