"""Every operator of random graphs by name: one row, one step, odd corners included."""

from __future__ import annotations

from tests.models.differential.arithmetic import (
    cast,
    clip,
    dropout,
    expand,
    gate,
    leaky_relu,
    of_two,
    power,
    shaped,
    softsign,
    unary,
    with_constant,
)
from tests.models.differential.lipschitz import (
    conv_transpose,
    depth_to_space,
    global_lp_pool,
    lp_pool,
    ordered_pairs,
    prelu,
    root_of_squares,
    space_to_depth,
    top_k,
)
from tests.models.differential.reshaping import (
    concat,
    cut,
    flatten,
    gather,
    partly_absolute,
    reduction,
    reshape,
    split,
    squeeze,
    transpose,
    unsqueeze,
)
from tests.models.differential.scikit_learn import chosen_features, scaled_features
from tests.models.differential.steps import Step
from tests.models.differential.weighted import (
    average_pool,
    batch_normalization,
    conv,
    gemm,
    hard_sigmoid,
    matmul,
    max_pool,
    pad,
    resize,
)

__all__ = ["IMAGE_STEPS", "LINE_STEPS", "STEPS"]

#: Steps on activations of any shape (at least one axis beside the batch).
STEPS: dict[str, Step] = {
    "Abs": unary("Abs"),
    "Abs of a part": partly_absolute,
    "Add": with_constant("Add"),
    "Add of two": of_two("Add"),
    "ArrayFeatureExtractor": chosen_features,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Celu": shaped("Celu", 12, alpha=[0.5, 2.0]),
    "Clip": clip,
    "Concat": concat,
    "Div": with_constant("Div", positive=True, right=True),
    "Dropout": dropout,
    "Elu": shaped("Elu", 7, alpha=[0.3, 2.0]),
    "Erf": shaped("Erf", 9),
    "Expand": expand,
    "Flatten": flatten,
    "Gate": gate,
    "Gather": gather,
    "Gelu": shaped("Gelu", 20, approximate=["none", "tanh"]),
    "Gemm": gemm,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": shaped("HardSwish", 14),
    "Identity": unary("Identity"),
    "LeakyRelu": leaky_relu,
    "MatMul": matmul,
    "Max": with_constant("Max"),
    "Max of two": of_two("Max"),
    "Min": with_constant("Min"),
    "Min of two": of_two("Min"),
    "Mish": shaped("Mish", 18),
    "Mul": with_constant("Mul"),
    "Mul of two": of_two("Mul"),
    "Neg": unary("Neg"),
    "Norm": root_of_squares,
    "PRelu": prelu,
    "Pad": pad,
    "Pairs in order": ordered_pairs,
    "Pow": power,
    "ReduceL2": reduction("ReduceL2", 18),
    "ReduceMax": reduction("ReduceMax", 18),
    "ReduceMean": reduction("ReduceMean", 18),
    "ReduceMin": reduction("ReduceMin", 18),
    "ReduceSum": reduction("ReduceSum", 13),
    "Relu": unary("Relu"),
    "Reshape": reshape,
    "Resize": resize,
    "Scaler": scaled_features,
    "Selu": shaped("Selu", 7, alpha=[0.5, 1.5], gamma=[0.5, 2.0]),
    "Sigmoid": unary("Sigmoid"),
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Sub": with_constant("Sub"),
    "Sub of two": of_two("Sub"),
    "Sum": of_two("Sum"),
    "Softplus": unary("Softplus"),
    "Softsign": unary("Softsign"),
    "Softsign in nodes": softsign,
    "Swish": shaped("Swish", 24, alpha=[0.5, 1.7]),
    "Tanh": unary("Tanh"),
    "TopK": top_k,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
#: Steps on images [batch, channels, height, width].
IMAGE_STEPS: dict[str, Step] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "GlobalAveragePool": unary("GlobalAveragePool"),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": unary("GlobalMaxPool"),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "SpaceToDepth": space_to_depth,
}
#: Steps on lines [batch, channels, length].
LINE_STEPS: dict[str, Step] = {
    name: IMAGE_STEPS[name]
    for name in (
        *("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"),
    )
}
