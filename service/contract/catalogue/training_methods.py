"""The training methods that POST /train takes: one row each, which also feeds GET /methods.

A new method is one row here and one objective file in ``workers/training/objectives/``. Whoever
asks for a fact about a method reads it here: the API, the command line, the worker that passes
``bfloat16`` and ``compiled`` on to the run, README's table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.contract.schemas.submissions import Strict
from service.contract.schemas.training_options import (
    BcpOptions,
    CapOptions,
    ColtOptions,
    CrownIbpOptions,
    EmmaOptions,
    ExpressiveOptions,
    GloroTradesOptions,
    IbpOptions,
    LmtOptions,
    LocalLipBOptions,
    LocalLipGOptions,
    NoOptions,
    OneLipschitzOptions,
    SabrOptions,
    SocCrcOptions,
    SocOptions,
    StapsOptions,
    TapsOptions,
)

__all__ = ["TRAINING_METHODS", "TrainingMethod"]


@dataclass(frozen=True)
class TrainingMethod:
    """One training method.

    cost: of a training step, in plain steps of the same network, as measured. bfloat16: whether its
    forward pass may be computed in it, which boxes do not bear; bfloat16_on_cpu: whether ``auto``
    takes it on a processor that multiplies it, too. compiled: whether ``auto`` compiles
    the step on a GPU. certify_with: members of the spec that its model is certified with where the
    request does not say; by default on all test samples. options: the model of its own options.
    norms: those it trains for; the first one where the request does not say.
    """

    name: str
    title: str
    cost: str
    source: str
    bfloat16: bool = True
    bfloat16_on_cpu: bool = False
    compiled: bool = True
    certify_with: Mapping[str, Any] = field(default_factory=lambda: {"method": "bcp"})
    options: type[Strict] = NoOptions
    norms: tuple[str, ...] = ("l2", "linf")

    def described(self) -> dict[str, Any]:
        """The row as GET /methods lists it; of the options their names."""
        return {
            "name": self.name,
            "title": self.title,
            "cost": self.cost,
            "source": self.source,
            "bfloat16": self.bfloat16,
            "compiled": self.compiled,
            "certify_with": dict(self.certify_with),
            "options": sorted(self.options.model_fields),
            "norms": list(self.norms),
        }


#: Trained by boxes, for linf: the IBP family, and COLT's zonotopes.
_for_boxes = partial(
    TrainingMethod,
    bfloat16=False,
    compiled=False,
    certify_with={"method": "auto"},
    norms=("linf",),
)

_ROWS = (
    TrainingMethod(
        "standard",
        "Cross-entropy alone",
        "1",
        "the baseline; certifies next to nothing",
        certify_with={"method": "auto", "samples": 1000},
    ),
    TrainingMethod(
        "lmt",
        "Lipschitz-margin training: sqrt(2) epsilon L on every wrong logit",
        "about 1.2",
        "Tsuzuku, Sato, Sugiyama 2018",
        # Its singular values wait for the device.
        compiled=False,
        options=LmtOptions,
    ),
    TrainingMethod(
        "gloro",
        "Globally-robust networks: one more class that wins where the margin is not robust",
        "about 1.2",
        "Leino, Wang, Fredrikson 2021",
    ),
    TrainingMethod(
        "gloro-trades",
        "The same, the divergence to the robust output weighed against clean accuracy",
        "about 1.2",
        "Leino, Wang, Fredrikson 2021",
        options=GloroTradesOptions,
    ),
    TrainingMethod(
        "bcp",
        "Box constraint propagation: cross-entropy of the worst logits over ball and box",
        "about 4",
        "Lee, Lee, Park 2020",
        bfloat16=False,
        options=BcpOptions,
    ),
    TrainingMethod(
        "local-lip-b",
        "BCP's loss with operator norms per sample",
        "about 5",
        "Huang, Zhang, Shi, Kolter, Anandkumar 2021",
        bfloat16=False,
        certify_with={"method": "local-lip"},
        options=LocalLipBOptions,
    ),
    TrainingMethod(
        "local-lip-g",
        "GloRo's loss with operator norms per sample",
        "about 5",
        "Huang, Zhang, Shi, Kolter, Anandkumar 2021",
        bfloat16=False,
        certify_with={"method": "local-lip"},
        options=LocalLipGOptions,
    ),
    TrainingMethod(
        "emma",
        "Efficient margin maximization: each wrong class gets the epsilon it can just bear",
        "about 1.2",
        "Hu, Zou, Wang, Leino, Fredrikson 2023",
        options=EmmaOptions,
    ),
    TrainingMethod(
        "one-lipschitz",
        "For 1-Lipschitz layers: cross-entropy of f_j + epsilon |w_y - w_j|, with a temperature",
        "about 1.1",
        "Prach, Lampert 2022",
        bfloat16_on_cpu=True,
        compiled=False,
        certify_with={"method": "lipschitz"},
        options=OneLipschitzOptions,
    ),
    TrainingMethod(
        "soc",
        "For 1-Lipschitz layers behind unit rows: cross-entropy less the mean certified radius",
        "about 1",
        "Singla, Singla, Feizi 2022",
        compiled=False,
        certify_with={"method": "lipschitz"},
        options=SocOptions,
    ),
    TrainingMethod(
        "soc-crc",
        "For 1-Lipschitz layers before a softplus head: cross-entropy and the head's curvature",
        "about 1.1",
        "Singla, Feizi 2022",
        compiled=False,
        certify_with={"method": "crc"},
        options=SocCrcOptions,
    ),
    _for_boxes(
        "ibp",
        "Interval bounds: cross-entropy of the worst logits over the box",
        "about 2.6",
        "Gowal et al. 2018; Shi et al. 2021",
        options=IbpOptions,
    ),
    _for_boxes(
        "crown-ibp",
        "Interval bounds inside, one linear bound of the loss back to the pixels",
        "about 6",
        "Zhang et al. 2020; Xu et al. 2020",
        options=CrownIbpOptions,
    ),
    _for_boxes(
        "sabr",
        "Interval bounds of a small box around an adversarial example",
        "about 9 with an attack of 8 steps",
        "Mueller, Eckert, Fischer, Vechev 2023",
        options=SabrOptions,
    ),
    _for_boxes(
        "taps",
        "Interval bounds of the first layers, an attack in their box for the others",
        "about 28 with an attack for each class",
        "Mao, Mueller, Fischer, Vechev 2023",
        options=TapsOptions,
    ),
    _for_boxes(
        "staps",
        "The same for SABR's small box",
        "about 34 with both attacks",
        "Mao, Mueller, Fischer, Vechev 2023",
        options=StapsOptions,
    ),
    _for_boxes(
        "mtl-ibp",
        "Weighted sum of the losses of an attack and of interval bounds",
        "about 9.5 with an attack of 8 steps",
        "De Palma et al. 2024",
        options=ExpressiveOptions,
    ),
    _for_boxes(
        "cc-ibp",
        "Cross-entropy of weighted sums of attacked and bounded logits",
        "about 9.5 with an attack of 8 steps",
        "De Palma et al. 2024",
        options=ExpressiveOptions,
    ),
    _for_boxes(
        "exp-ibp",
        "Product of powers of the losses of an attack and of interval bounds",
        "about 9.5 with an attack of 8 steps",
        "De Palma et al. 2024",
        options=ExpressiveOptions,
    ),
    _for_boxes(
        "colt",
        "An adversary in the zonotope behind one ReLU after another, what is before it frozen",
        "about 37: two attacks",
        "Balunovic, Vechev 2020",
        options=ColtOptions,
    ),
    TrainingMethod(
        "cap",
        "Cross-entropy of the dual's bounds over the convex outer polytope, by random projections",
        "about 115: 50 projections of each layer's terms",
        "Wong, Kolter 2018; Wong et al. 2018",
        bfloat16=False,
        compiled=False,
        certify_with={"method": "auto"},
        options=CapOptions,
        norms=("linf", "l2"),
    ),
)

#: Training methods by name, in the order of the table.
TRAINING_METHODS: dict[str, TrainingMethod] = {row.name: row for row in _ROWS}
