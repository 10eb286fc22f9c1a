"""A matrix that is deployed as sums of partial sums, recognised as the one map that it is.

The chain: a grouped convolution, a reshape of its channels to [n_1, ..., n_k, out], one sum over
each of the first k axes in turn, n_1 ... n_k groups in all. Sums commute, so in exact arithmetic it
is the convolution with the groups' kernels side by side. Taken step by step its norm would be the
root of the number of groups times that. Of a convolution that has groups itself these stay apart:
the reshape is to [groups, n_1, ..., n_k, out, ...], the sums are over its second axis, and a last
reshape puts the groups' outputs one behind the other.

Its deployed roundings. Block g computes p_g = sum_i w_gi x_i (+ b_g) in any order: each product
meets at most t factors (1 + d), |d| <= u, for the convolution's t terms. A sum over n_j numbers in
any order gives each of them at most n_j - 1 more. So the output is sum_gi w_gi x_i (1 + theta),
|theta| <= gamma_(t + sum_j (n_j - 1)) (Higham 2002, sections 3.1 and 4.2), and no partial result
exceeds |W| |x| + |b| by more than that. For norms the trees themselves are known: of t leaves,
their sums the leaves of trees of n_j, and each block reads channels of its own
(``verification.summation``; where groups stay apart, let block g be that of every group together:
an output reads its own group's channels of it). The verifier's own evaluation of the one map sums
over all channels at once: ``own_terms`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from models.layers.kinds import Reshape
from workers.verification.graph.affine import Affine, Inner, Shape
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.graph_step import GraphStep
from workers.verification.graph.reductions import Reduction
from workers.verification.numerics import raised
from workers.verification.summation import Summation

__all__ = ["with_whole_maps"]


def with_whole_maps(steps: list[GraphStep]) -> list[GraphStep]:
    """The steps, each chain of partial sums as one; one map where they are of the same map."""
    index = 0
    made: dict[tuple[Convolution, int, tuple[int, ...], Shape], Affine] = {}
    while index < len(steps):
        found = _chain(steps, index)
        if found is not None:
            last, conv, kept, counts = found
            key = (conv, kept, counts, steps[last].shape)
            if key not in made:
                made[key] = _whole(conv, kept, counts, steps[last].shape)
            op = made[key]
            names = "+".join(step.name for step in steps[index : last + 1])
            whole = GraphStep(names, op, steps[index].sources, steps[last].shape)
            steps = [*steps[:index], whole, *_renumbered(steps[last + 1 :], last, last - index)]
        index += 1
    return steps


def _renumbered(steps: Sequence[GraphStep], last: int, gone: int) -> list[GraphStep]:
    """Steps behind ``last``, ``gone`` steps before them fewer."""
    return [
        replace(step, sources=tuple(s - gone if s > last else s for s in step.sources))
        for step in steps
    ]


def _chain(
    steps: list[GraphStep], first: int
) -> tuple[int, Convolution, int, tuple[int, ...]] | None:
    """(place of the last step, the convolution, groups that stay apart, terms of each sum) of the
    chain that begins here."""
    conv = steps[first].op
    if not isinstance(conv, Convolution) or conv.geometry.groups == 1:
        return None
    if first + 2 >= len(steps) or not isinstance(steps[first + 1].op, Reshape):
        return None
    summed = steps[first + 2].op
    apart = isinstance(summed, Reduction) and summed.axes == (2,)
    shape, counts, last = tuple(steps[first + 1].shape), list[int](), first + 1
    front, left = (shape[:1], shape[1:]) if apart else ((), shape)
    kept = math.prod(front)
    groups = conv.geometry.groups
    for index in range(first + 2, len(steps)):
        op = steps[index].op
        if not (isinstance(op, Reduction) and op.axes == (1 + apart,) and op.scale == 1.0):
            break
        counts.append(left[0])
        left, last = left[1:], index
        if tuple(steps[index].shape) != (*front, *left):
            # The axis stays with size 1: what follows counts on it.
            return None
        if kept * math.prod(counts) >= groups:
            break
    out = conv.out_shape[0] // groups
    shape = (out, *conv.out_shape[1:])
    if kept * math.prod(counts) != groups or left not in (shape, (out,)):
        return None
    if left == (out,) and (apart or not _reads_one_place(conv)):
        return None
    if apart:
        last += 1
        behind = steps[last] if last < len(steps) else None
        whole = (kept * out, *shape[1:])
        if behind is None or not isinstance(behind.op, Reshape) or tuple(behind.shape) != whole:
            return None
    if not _only_uses(steps, first, last):
        return None
    return last, conv, kept, tuple(counts)


def _reads_one_place(conv: Convolution) -> bool:
    """Whether the image is one place and the window that place: a matrix of the channels."""
    ones, unpadded = (1, 1), conv.geometry.padding == (0, 0, 0, 0)
    return unpadded and conv.in_shape[1:] == ones and tuple(conv.weight.shape[2:]) == ones


def _only_uses(steps: list[GraphStep], first: int, last: int) -> bool:
    """Whether each step of the chain reads the one before it, and nothing else does."""
    inner = range(first + 1, last + 1)
    return all(
        step.sources == (index,) if index in inner else not set(step.sources) & set(inner)
        for index, step in enumerate(steps)
    )


def _whole(
    conv: Convolution, kept: int, counts: Sequence[int], out_shape: tuple[int, ...]
) -> Affine:
    groups, block = conv.geometry.groups // kept, conv.weight.shape[1]
    out = conv.weight.shape[0] // (kept * groups)
    kernel = conv.weight.shape[2:]
    weight = conv.weight.reshape(kept, groups, out, block, *kernel).transpose(1, 2)
    weight = weight.reshape(kept * out, groups * block, *kernel).contiguous()
    split = (kept, groups, out, *conv.out_shape[1:])
    bias, magnitude, squares = (
        tensor.expand(conv.out_shape).reshape(split).sum(1).reshape(-1, *conv.out_shape[1:])
        for tensor in (conv.bias, conv.bias_magnitude, conv.leaf_squares)
    )
    trees = None
    if conv.summation is not None:
        # What is behind a group's sum is ahead of the sums over the groups.
        ahead = conv.summation.ahead + conv.summation.behind
        trees = Summation((*conv.summation.sizes, *map(float, counts)), ahead)
    terms = conv.terms + sum(count - 1 for count in counts)
    products = weight[0].numel() + 4.0
    inner = Inner(conv.inner.gain, conv.inner.shift, raised(conv.inner.lost + products))
    if out_shape == (out,):
        return Dense(
            conv.in_shape,
            out_shape,
            bias.reshape(out_shape),
            raised(magnitude.reshape(out_shape)),
            terms,
            weight=weight.flatten(1),
            inner=inner,
            least_own_terms=products,
            summation=trees,
            bias_square=raised(squares.reshape(out_shape)),
        )
    return Convolution(
        conv.in_shape,
        out_shape,
        bias,
        raised(magnitude),
        terms,
        weight=weight,
        geometry=replace(conv.geometry, groups=kept),
        inner=inner,
        least_own_terms=products,
        summation=trees,
        bias_square=raised(squares),
    )
