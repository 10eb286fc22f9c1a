"""Layers that lengthen no difference by construction, as they are trained.

``AbsShift``, ``OrthogonalChannels`` and the moves beside them are laid out for processors: matrices
across channels instead of convolutions, and moves of numbers. Images are [batch, c, h, w] like
everywhere else, but lie in memory as torch's ``channels_last``, so that a matrix across the
channels of all places is one matrix product. ``SkewConv2d``, ``Householder``, ``PairMax`` and
``ProjectionPool`` are the published skew orthogonal convolutions; almost orthogonal layers (AOL),
convex potential layers (CPL, SLL) and block reflectors (BRO) stand beside them. What is deployed in
their place is plain: convolutions, matrices, ReLU, sums, quotients, Abs, MaxMin, Gather, slices,
reshapes.
"""

from __future__ import annotations

from models.layers.one_lipschitz.abs_shift import AbsShift
from models.layers.one_lipschitz.aol import AolConv2d, AolLinear
from models.layers.one_lipschitz.bro import BroConv2d, BroLinear
from models.layers.one_lipschitz.channels import PadChannels, SpaceToDepth
from models.layers.one_lipschitz.head import NormalizedHead, SummedLinear
from models.layers.one_lipschitz.orthogonal import OrthogonalChannels
from models.layers.one_lipschitz.pairs import Householder, InexactPairs, PairMax
from models.layers.one_lipschitz.potentials.cpl import CplConv2d, CplLinear
from models.layers.one_lipschitz.potentials.sll import SllConv2d, SllLinear
from models.layers.one_lipschitz.projection import ProjectionPool
from models.layers.one_lipschitz.skew import SkewConv2d

__all__ = [
    "ONE_LIPSCHITZ",
    "AbsShift",
    "AolConv2d",
    "AolLinear",
    "BroConv2d",
    "BroLinear",
    "CplConv2d",
    "CplLinear",
    "Householder",
    "InexactPairs",
    "NormalizedHead",
    "OrthogonalChannels",
    "PadChannels",
    "PairMax",
    "ProjectionPool",
    "SkewConv2d",
    "SllConv2d",
    "SllLinear",
    "SpaceToDepth",
    "SummedLinear",
]

#: Layers that are trained as they are here and deployed as something else.
ONE_LIPSCHITZ = (
    AbsShift,
    AolConv2d,
    AolLinear,
    BroConv2d,
    BroLinear,
    CplConv2d,
    CplLinear,
    Householder,
    NormalizedHead,
    OrthogonalChannels,
    PadChannels,
    PairMax,
    ProjectionPool,
    SkewConv2d,
    SllConv2d,
    SllLinear,
    SpaceToDepth,
    SummedLinear,
)
