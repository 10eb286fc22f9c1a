"""What each kind of layer in a layer list may say, so that a slip is refused before there is a job.

The layers themselves are in ``models/architectures/layer_makers.py``, which the API must not
import; a test keeps both tables equal. Whether sizes fit together only the worker knows.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["INITS", "JOINING", "LAYER_KINDS", "LEFT_OUT", "Member"]


class Member(NamedTuple):
    """A member of a layer: ``form`` is one of ``integer``, ``sizes`` (one integer or several),
    ``boolean``, ``number``, ``numbers``, ``text``; ``required``: it has no default."""

    form: str
    required: bool = False


_OUT = Member("integer", required=True)
_SIZE, _SIZES = Member("integer"), Member("sizes")
_NUMBER, _FLAG = Member("number"), Member("boolean")
_KERNEL = Member("sizes", required=True)
_NUMBERS = Member("numbers", required=True)
_DENSE = {"out": _OUT, "bias": _FLAG}
_WINDOW = {"kernel": _KERNEL, "stride": _SIZES, "padding": _SIZES}
_CONV = {"out": _OUT, **_WINDOW, "bias": _FLAG}
_LIMIT = {"value": _NUMBER, "half": Member("text")}
_INNER = {"inner": _SIZE}
_REDUCTION = {"axes": Member("sizes", required=True), "keepdims": _FLAG}

#: Kind -> its members beside ``kind``, ``name`` and ``from``.
LAYER_KINDS: dict[str, dict[str, Member]] = {
    "abs": {},
    "abs-shift": {},
    "add": {},
    "aol-conv2d": _CONV,
    "aol-linear": _DENSE,
    "at-least": _LIMIT,
    "at-most": _LIMIT,
    "atan": {},
    "avg-pool2d": {**_WINDOW, "count_include_pad": _FLAG},
    "batch-norm": {"eps": _NUMBER},
    "bro-conv2d": {"rank": _SIZE, "kernel": _SIZES},
    "bro-linear": {"rank": _SIZE},
    "celu": {"alpha": _NUMBER},
    "clip": {"low": _NUMBER, "high": _NUMBER},
    "concat": {"axis": _SIZE},
    "conv2d": {**_CONV, "dilation": _SIZES, "groups": _SIZE},
    "cos": {},
    "cpl-conv2d": {**_INNER, "kernel": _SIZES},
    "cpl-linear": _INNER,
    "elu": {"alpha": _NUMBER},
    "flatten": {},
    "gelu": {"approximate": Member("text")},
    "global-avg-pool": {},
    "global-l2-pool": {},
    "hard-swish": {},
    "householder": {"order": _SIZE},
    "l2-pool2d": {"kernel": _KERNEL},
    "leaky-relu": {"slope": _NUMBER},
    "linear": _DENSE,
    "max-pool2d": _WINDOW,
    "maximum": {},
    "maxmin": {},
    "minimum": {},
    "mish": {},
    "normalize": {"mean": _NUMBERS, "std": _NUMBERS},
    "normalized-head": _DENSE,
    "normalized-linear": _DENSE,
    "orthogonal-channels": {},
    "orthogonal-conv2d": {"out": _OUT, "kernel": _KERNEL, "padding": _SIZES},
    "orthogonal-linear": _DENSE,
    "pad-channels": {"channels": _OUT},
    "pair-max": {},
    "power": {"exponent": _SIZE},
    "product": {},
    "projection-pool": {"folds": _SIZE},
    "reduce-mean": _REDUCTION,
    "reduce-sum": _REDUCTION,
    "relu": {},
    "relu-theta": {"value": _NUMBER},
    "relu6": {},
    "residual": {},
    "residual-conv2d": {"kernel": _SIZES, "scale": _NUMBER},
    "residual-orthogonal-linear": {"scale": _NUMBER},
    "selu": {},
    "sigmoid": {},
    "silu": {},
    "sin": {},
    "skew-conv2d": {"out": _OUT, "kernel": _SIZES, "degree": _SIZE, "bias": _FLAG},
    "slice": {"axis": _SIZE, "start": _SIZE, "stop": _SIZE, "step": _SIZE},
    "sll-conv2d": {**_INNER, "kernel": _SIZES},
    "sll-linear": _INNER,
    "softplus": {"beta": _NUMBER},
    "softsign": {},
    "space-to-depth": {"block": _SIZE},
    "summed-linear": _DENSE,
    "tanh": {},
}

#: Kinds that join the layer before them with the ones that ``from`` names.
JOINING = ("add", "concat", "maximum", "minimum", "product", "residual")

_NOTHING = "does nothing once a network is trained"
_SAME_ANSWER = "does not change which class is the answer (margins are of the logits before it)"
#: Layers of training frameworks that a layer list has no need of (their names in small letters,
#: without signs), and why.
LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout"), _NOTHING),
    **dict.fromkeys(("featurealphadropout", "droppath", "stochasticdepth", "identity"), _NOTHING),
    **dict.fromkeys(("gaussiannoise", "gaussiandropout", "spatialdropout2d"), _NOTHING),
    **dict.fromkeys(("softmax", "logsoftmax"), _SAME_ANSWER),
}

#: How weights may begin.
INITS = ("default", "glorot", "he", "ibp", "orthogonal")
