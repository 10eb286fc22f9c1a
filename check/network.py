"""The network: a chain of layers from the sample to the logits, the last one a dense map.

An affine layer y = W x + b is held in float64 with what its deployed float32 evaluation may add:
``terms`` roundings on the way to one output (``steps`` in the evaluation here), of a magnitude of
at most |W| |x| + |b|; numbers held inside are at most gain * max |x| + shift. All other layers are
exact in float32, monotone, and move no farther (l2) than their input: ReLU, MaxMin, views, moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from check.file import Array, Rejected, members, need, whole
from check.norms import (
    UP,
    absolute_norm,
    blocks_of,
    euclidean,
    largest_norm,
    own,
    series_norm,
    torus_norm,
)

Shape = tuple[int, ...]
Tensors = dict[str, NDArray[Any]]
Map = Callable[[Array, Array], Array]
Norms = Callable[[], tuple[float, float]]
Ends = tuple[Shape, Shape]
#: Numbers of one value or of the patches of one sample, layers, and sizes of windows, at most.
MAX_NUMBERS, MAX_LAYERS, MAX_SIDE = 2**25, 512, 4096
#: By how much a logit must lead, by what stands behind the logits: a float32 softmax may make a tie
#: of less (64 roundings of exp(0) = 1).
LEADS = {None: 0.0, "ArgMax": 0.0, "Softmax": 2.0**-18, "LogSoftmax": 2.0**-18}
#: Multiplications of one evaluation: those of a certificate take seconds in all.
MOST = 1e11
#: A norm in the file may be so much above the one that is proved here.
ABOVE = 1.0 + 2.0**-20


class Layer:
    """A layer on [n, *shape]: exact, monotone, 1-Lipschitz. patches: numbers held on the way."""

    def __init__(self, apply: Callable[[Array], Array], out_shape: Shape) -> None:
        self.apply, self.out_shape, self.patches = apply, out_shape, 0


class Affine(Layer):
    """W x + b. linear(x, weight): W x with any entries in the places of W's; norms(): upper bounds
    on |W|_2 and | |W| |_2; ``norm`` and ``absolute``: those that the file states."""

    def __init__(self, linear: Map, norms: Norms, weight: Array, bias: Array, ends: Ends) -> None:
        super().__init__(lambda x: linear(x, weight) + bias, ends[1])
        self.linear, self.norms, self.weight = linear, norms, weight
        self.terms = self.steps = weight[0].size + 2
        #: Groups of a convolution; how often its sums are made, one after another.
        self.groups = self.stages = 1
        self.size, self.magnitude = np.abs(weight), np.abs(bias)
        self.gain = self.shift = self.norm = self.absolute = 0.0
        self.bias_norm = float(euclidean(np.broadcast_to(self.magnitude, ends[1])[None])[0])
        self.largest_bias = float(self.magnitude.max())
        #: Upper bound on the sum of |W| over a row.
        self.row_sum = float(self.upper(np.ones((1, *ends[0]))).max())

    @property
    def spread(self) -> float:
        """By how much what underflow takes from a sum may grow."""
        return 1.0

    def work_of_norms(self) -> float:
        """About the multiplications that its norms take: some squarings of a complex matrix for
        every frequency and group, of a dense layer of one real matrix."""
        if self.weight.ndim < 4:
            rows, columns = sorted((len(self.weight), self.weight[0].size))
            return float(2 * rows * rows * (columns + 16 * rows))
        rows, columns = sorted((len(self.weight) // self.groups, 4 * self.weight.shape[1]))
        symbols = 4.0 * self.groups * math.prod(self.out_shape[1:])
        return float(symbols * rows * rows * (columns + 4.0 * rows))

    def upper(self, x: Array) -> Array:
        """|W| x for x >= 0, rounded up."""
        return self.linear(x, self.size) * (UP + own(self.steps))


class Series(Affine):
    """z <- x + K z / c, c of ``divisors`` in turn, z = x before: K the skew map ``one``.

    In stage i a deployed z' is off by at most e_i <= k e_(i-1) / c + gamma (|x| + a |z'| / c),
    |K| <= k, | |K| | <= a, gamma of a sum, a quotient and a sum of two. ``absolute`` is e_d over
    gamma |x|, and at least the sums that are held; no bound on an entry of the whole map is known,
    so that boxes end here.
    """

    def __init__(self, one: Affine, divisors: Shape) -> None:
        def linear(x: Array, entries: Array) -> Array:
            z = x
            for divisor in divisors:
                z = x + one.linear(z, entries) / divisor
            return z

        def norms() -> tuple[float, float]:
            kernel, absolute = one.norms()
            size, error, held = 1.0, 0.0, 1.0
            for stage, divisor in enumerate(divisors, 1):
                # What the stage reads, with what it is off by: gamma is at most 2^-10.
                sums = absolute * (size + 2.0**-10 * error) * UP
                held = max(held, (1.0 + sums) * UP)
                error = (kernel * error / divisor + 1.0 + sums / divisor) * UP
                size = series_norm(kernel, divisors[:stage])
            return size, max(error, held) * UP

        ends = (one.out_shape, one.out_shape)
        super().__init__(linear, norms, one.weight, np.zeros(1), ends)
        self.terms, self.steps, self.patches = one.terms + 3, one.steps + 3, one.patches
        self.stages = len(divisors)
        need(self.terms <= 2**13, "a series has sums of too many terms")

    @property
    def spread(self) -> float:
        """Of one stage: what is off grows by what ``absolute`` counts of all stages."""
        return max(1.0, self.absolute)


class Network:
    """Layers in order, then the head, which gives the logits; lead: by how much one has to lead."""

    def __init__(self, shape: Any, rows: Any, ends_in: Any, tensors: Tensors) -> None:
        """Takes what it uses out of ``tensors``. Raises Unreadable where a layer is not covered."""
        self.in_shape = current = _sizes(shape)
        need(isinstance(rows, list) and 0 < len(rows) <= MAX_LAYERS, "there is no list of layers")
        known = isinstance(ends_in, str | None) and ends_in in LEADS
        need(known, "what stands behind the logits is not covered")
        self.lead, self.layers = LEADS[ends_in], list[tuple[str, Layer]]()
        #: Multiplications of one evaluation.
        self.once = 0.0
        for row in rows:
            kind = row.get("kind") if isinstance(row, dict) else None
            need(isinstance(kind, str) and kind in KINDS, "a layer is of no kind that is covered")
            names, make = KINDS[str(kind)]
            layer = make(members(row, "name", "kind", *names), current, tensors)
            need(isinstance(row["name"], str), "a layer has no name")
            need(0 < math.prod(layer.out_shape) <= MAX_NUMBERS, "a layer has too many numbers")
            if isinstance(layer, Affine):
                layer.norm, layer.absolute = row["norm"], row["absolute"]
                stated = (layer.norm, layer.absolute)
                need(all(type(n) is float and 0 <= n < 1e300 for n in stated), "a norm is none")
                self.once += float(layer.terms * layer.stages * math.prod(layer.out_shape))
                need(self.once <= MOST, "its layers take too many multiplications")
            current = layer.out_shape
            self.layers.append((row["name"], layer))
        head = self.layers[-1][1]
        dense = isinstance(head, Affine) and head.weight.ndim == 2 and len(current) == 1
        need(dense and 2 <= current[0] <= 2**14, "it ends in no dense layer")
        assert isinstance(head, Affine)
        self.head, self.classes = head, current[0]
        sizes = [max(layer.patches, math.prod(layer.out_shape)) for _, layer in self.layers]
        #: Samples that are handled at once, so that memory stays bounded.
        self.block = max(1, 2**22 // max(math.prod(self.in_shape), *sizes))

    def work(self, samples: int, boxes: int) -> float:
        """About the multiplications that it takes to prove so many radii and boxes, and norms."""
        norms = [layer.work_of_norms() for _, layer in self.layers if isinstance(layer, Affine)]
        return sum(norms) + 2.0 * (samples + boxes) * self.once

    def check_norms(self) -> None:
        """Raise Rejected unless every norm of the file is what is proved here, or a little more."""
        for name, layer in self.layers:
            if isinstance(layer, Affine):
                pairs = zip((layer.norm, layer.absolute), layer.norms(), strict=True)
                fits = all(proved <= said <= proved * ABOVE for said, proved in pairs)
                need(fits, f"{name[:80]!a} has not the norms that it says", Rejected)


def _sizes(value: Any, count: int | None = None, least: int = 1) -> Shape:
    need(isinstance(value, list) and 0 < len(value) <= 6, "a list of sizes is none")
    need(count in (None, len(value)), "a list of sizes has another length")
    most = MAX_NUMBERS if count is None else MAX_SIDE
    found = tuple(whole(size, most, least) for size in value)
    need(count is not None or math.prod(found) <= MAX_NUMBERS, "a shape has too many numbers")
    return found


def _tensor(tensors: Tensors, name: Any, axes: int) -> Array:
    array = tensors.pop(name, np.zeros(0)) if isinstance(name, str) else np.zeros(0)
    fits = array.dtype == np.float32 and array.ndim == axes and array.size
    need(fits, "a layer's tensor is missing, used already, or has not its type or axes")
    return array.astype(np.float64)


def _weight(row: dict[str, Any], tensors: Tensors, axes: int) -> tuple[Array, Array]:
    weight = _tensor(tensors, row["weight"], axes)
    bias = np.zeros(len(weight)) if row["bias"] is None else _tensor(tensors, row["bias"], 1)
    need(len(bias) == len(weight), "a bias does not fit its weight")
    return weight, bias


def _linear(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    weight, bias = _weight(row, tensors, 2)
    need(shape == weight.shape[1:], "a dense layer does not fit what comes before it")
    return _dense(shape, weight, bias)


def _dense(shape: Shape, weight: Array, bias: Array) -> Affine:
    norms = lambda: (largest_norm(weight[None]), largest_norm(np.abs(weight)[None]))  # noqa: E731
    apply = lambda x, w: x.reshape(len(x), -1) @ w.T  # noqa: E731
    return Affine(apply, norms, weight, bias, (shape, weight.shape[:1]))


def _summed(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    """In blocks of channels, whose results are summed level by level: one map of all channels, or
    of those of each group. A product meets its own rounding, those of its block and of each level,
    and the bias."""
    weight, levels = _tensor(tensors, row["weight"], 4), _sizes(row["levels"])
    groups = whole(row.get("groups", 1), len(weight), 1)
    together = _together(weight, shape, groups, math.prod(levels))
    bias = np.zeros(len(together)) if row["bias"] is None else _tensor(tensors, row["bias"], 1)
    need(bias.shape == together.shape[:1], "a bias does not fit its partial sums")
    layer = _windows(row, shape, together, bias[:, None, None], groups)
    if row.get("flat") is True:
        one = layer.out_shape[1:] == shape[1:] == weight.shape[2:] == (1, 1)
        need(one and not any(row["padding"]), "partial sums of several places are no dense layer")
        layer = _dense(shape, together[:, :, 0, 0], bias)
    layer.terms = weight[0].size + 2 + sum(levels) - len(levels)
    return layer


def _together(weight: Array, shape: Shape, groups: int, blocks: int) -> Array:
    """The kernel [out, in / groups, h, w] of all blocks; a group's blocks follow each other, and so
    do a block's results."""
    every = groups * blocks
    fits = len(shape) == 3 and shape[0] == every * weight.shape[1] and not len(weight) % every
    need(fits, "partial sums do not fit what comes before them")
    parts = weight.reshape(groups, blocks, len(weight) // every, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(-1, shape[0] // groups, *weight.shape[2:])


def _series(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    """Of one convolution that is its own negative transpose, exactly, with zeros around it."""
    weight, levels = _tensor(tensors, row["weight"], 4), _sizes(row["levels"])
    divisors = row["divisors"]
    need(isinstance(divisors, list) and 0 < len(divisors) <= 24, "a series has no divisors")
    divisors = tuple(whole(divisor, 64, 1) for divisor in divisors)
    kernel = _together(weight, shape, 1, math.prod(levels))
    odd = kernel.shape[2] % 2 == kernel.shape[3] % 2 == 1 and len(kernel) == kernel.shape[1]
    skew = odd and np.array_equal(kernel, -kernel.swapaxes(0, 1)[:, :, ::-1, ::-1])
    need(skew, "the map of a series is not its own negative transpose")
    half = [size // 2 for size in kernel.shape[2:]]
    form = {"stride": [1, 1], "dilation": [1, 1], "padding": half + half}
    one = _windows(form, shape, kernel, np.zeros(1), 1)
    one.terms = weight[0].size + 2 + sum(levels) - len(levels)
    return Series(one, divisors)


def _conv2d(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    weight, bias = _weight(row, tensors, 4)
    groups = whole(row["groups"], len(weight), 1)
    fits = len(shape) == 3 and shape[0] == groups * weight.shape[1] and not len(weight) % groups
    need(fits, "a convolution does not fit what comes before it")
    return _windows(row, shape, weight, bias[:, None, None], groups)


def _average(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    kernel = _sizes(row["kernel"], 2)
    fits = len(shape) == 3 and shape[0] * math.prod(kernel) <= MAX_NUMBERS
    need(fits, "a pool does not fit its input")
    weight = np.full((shape[0], 1, *kernel), 1.0 / math.prod(kernel))
    pool = _windows(row, shape, weight, np.zeros(1), shape[0])
    # The sum over a window is held before it is divided.
    pool.terms = pool.steps = math.prod(kernel) + 4
    pool.gain = float(math.prod(kernel))
    return pool


def _windows(row: dict[str, Any], shape: Shape, weight: Array, bias: Array, groups: int) -> Affine:
    """weight [out, in / groups, h, w]; padding: top, left, bottom, right."""
    stride, dilation = (_sizes(row[name], 2) for name in ("stride", "dilation"))
    top, left, bottom, right = _sizes(row["padding"], 4, 0)
    pads = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = (shape[1] + top + bottom, shape[2] + left + right)
    window = tuple(d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    axes = zip(padded, window, stride, strict=True)
    high, wide = ((size - part) // step + 1 for size, part, step in axes)
    need(min(high, wide) > 0, "a window does not fit its image")
    cells = weight[:, :, 0, 0].size * math.prod(w + s for w, s in zip(window, stride, strict=True))
    largest = max(weight[0].size * groups, len(weight)) * high * wide
    numbers = max(shape[0] * math.prod(padded), largest, cells)
    need(numbers <= MAX_NUMBERS, "a convolution is too large")

    def linear(x: Array, entries: Array) -> Array:
        views = np.lib.stride_tricks.sliding_window_view(np.pad(x, pads), window, axis=(2, 3))
        views = views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
        parts, split = [], np.split(entries, groups)
        for some, kernels in zip(np.split(views, groups, 1), split, strict=True):
            flat = some.transpose(0, 2, 3, 1, 4, 5).reshape(-1, kernels[0].size)
            parts.append((flat @ kernels.reshape(len(kernels), -1).T).T)
        out = np.concatenate(parts).reshape(len(entries), len(x), high, wide)
        return np.ascontiguousarray(out.swapaxes(0, 1))

    def norms() -> tuple[float, float]:
        kernels = np.unique(np.stack(np.split(weight, groups)), axis=0)
        blocks = [blocks_of(kernel, stride, dilation) for kernel in kernels]
        absolute = max(absolute_norm(block) for block in blocks)
        bounds = [min(torus_norm(block, (high, wide), s) for s in (0, 1)) for block in blocks]
        return min(absolute, max(bounds)), absolute

    layer = Affine(linear, norms, weight, bias, (shape, (len(weight), high, wide)))
    layer.patches, layer.groups = numbers, groups
    return layer


def _normalize(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    mean, std = (_tensor(tensors, row[name], len(shape)) for name in ("mean", "std"))
    sizes = [*zip(mean.shape, shape, strict=True), *zip(std.shape, shape, strict=True)]
    need(all(m in (1, n) for m, n in sizes), "a normalisation does not fit what comes before it")
    # Divisors whose reciprocals are normal float32 numbers, too.
    need(2.0**-100 <= np.abs(std).min() <= np.abs(std).max() <= 2.0**100, "a std is not covered")
    norms = lambda: (float(np.abs(1.0 / std).max()) * UP,) * 2  # noqa: E731
    scaled = Affine(lambda x, w: x * w, norms, 1.0 / std, -mean / std, (shape, shape))
    # x - mean is held before it is divided.
    scaled.terms = scaled.steps = 6
    scaled.gain, scaled.shift = 1.0, float(np.abs(mean).max())
    return scaled


def _shift(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    value = _tensor(tensors, row["value"], len(shape))
    fits = all(m in (1, n) for m, n in zip(value.shape, shape, strict=True))
    need(fits, "a shift does not fit what comes before it")
    one = np.ones((1,) * len(shape))
    shifted = Affine(lambda x, w: x * w, lambda: (1.0, 1.0), one, value, (shape, shape))
    shifted.terms = shifted.steps = 3
    return shifted


def _permute(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    axes = row["axes"]
    need(isinstance(axes, list) and len(axes) == len(shape), "axes in another order are none")
    order = [whole(axis, len(shape) - 1) for axis in axes]
    need(len({*order}) == len(shape), "an axis stands there twice")
    moved = (0, *(axis + 1 for axis in order))
    return Layer(lambda x: x.transpose(moved), tuple(shape[axis] for axis in order))


def _slice(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    axis = whole(row["axis"], len(shape) - 1)
    stop = whole(row["stop"], shape[axis], 1)
    start, step = whole(row["start"], stop - 1), whole(row["step"], MAX_NUMBERS, 1)
    kept = (*(slice(None),) * (axis + 1), slice(start, stop, step))
    size = len(range(start, stop, step))
    return Layer(lambda x: x[kept], (*shape[:axis], size, *shape[axis + 1 :]))


def _pad(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    top, left, bottom, right = _sizes(row["padding"], 4, 0)
    value = row["value"]
    need(len(shape) >= 2 and type(value) is float and value == 0.0, "only zeros may be padded")
    *rest, high, wide = shape
    pads = (*((0, 0) for _ in range(len(rest) + 1)), (top, bottom), (left, right))
    return Layer(lambda x: np.pad(x, pads), (*rest, high + top + bottom, wide + left + right))


def _max_min(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    need(shape[0] % 2 == 0, "maxmin pairs channels, and there is an odd number of them")
    both = (np.maximum, np.minimum)
    return Layer(lambda x: np.concatenate([f(*np.split(x, 2, 1)) for f in both], 1), shape)


def _reshape(row: dict[str, Any], shape: Shape, tensors: Tensors) -> Layer:
    target = _sizes(row["shape"])
    need(math.prod(target) == math.prod(shape), "a view has another number of numbers")
    return Layer(lambda x: x.reshape(-1, *target), target)


_NORMS, _WINDOWS = ("norm", "absolute"), ("stride", "padding", "dilation")
#: Kind of layer -> its members besides name and kind, and what makes it.
KINDS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], Shape, Tensors], Layer]]] = {
    "linear": (("weight", "bias", *_NORMS), _linear),
    "conv2d": (("weight", "bias", *_WINDOWS, "groups", *_NORMS), _conv2d),
    "summed": (("weight", "bias", "levels", "flat", *_WINDOWS, *_NORMS), _summed),
    "summed-groups": (("weight", "bias", "levels", "groups", *_WINDOWS, *_NORMS), _summed),
    "avg-pool2d": (("kernel", *_WINDOWS, *_NORMS), _average),
    "normalize": (("mean", "std", *_NORMS), _normalize),
    "relu": ((), lambda row, shape, _: Layer(lambda x: np.maximum(x, 0.0), shape)),
    "maxmin": ((), _max_min),
    "reshape": (("shape",), _reshape),
    "permute": (("axes",), _permute),
    "slice": (("axis", "start", "stop", "step"), _slice),
    "pad": (("padding", "value"), _pad),
    "shift": (("value", *_NORMS), _shift),
    "skew-series": (("weight", "levels", "divisors", *_NORMS), _series),
}
