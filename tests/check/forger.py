"""Certificates of small networks, taken apart, changed and sealed again as a forger would."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from check.file import DTYPES, Rejected, Unreadable, digest_of, sealed
from check.verify import parse, verify
from models.layers.activations import MaxMin
from models.layers.kinds import AvgPool2d, Conv2d, Layer, Linear, Normalize, ReLU, Reshape
from models.network import INPUT, Network
from workers.jobs.report.certificate import Samples, certificate

__all__ = [
    "Forgery",
    "certified_by",
    "chain",
    "example",
    "example_network",
    "example_of_boxes",
    "proves",
]


class Forgery:
    """The document and the tensors of a certificate, to be changed and packed."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self.header: dict[str, Any] = json.loads(data[8 : 8 + length])
        self.document: dict[str, Any] = json.loads(self.header.pop("__metadata__")["certificate"])
        self.tensors = {}
        for name, row in self.header.items():
            start, stop = (8 + length + offset for offset in row["data_offsets"])
            numbers = np.frombuffer(data[start:stop], DTYPES[row["dtype"]])
            self.tensors[name] = numbers.reshape(row["shape"]).copy()

    def seal(self) -> None:
        """Make all digests those of the content."""
        digests = {name: digest_of(array.tobytes()) for name, array in self.tensors.items()}
        self.document = sealed({**self.document, "tensors": digests})

    def pack(self) -> bytes:
        """The file, with the digests as they are."""
        kinds = {np.dtype(form): name for name, form in DTYPES.items()}
        header: dict[str, Any] = {"__metadata__": {"certificate": json.dumps(self.document)}}
        body = b""
        for name, array in self.tensors.items():
            raw = array.tobytes()
            place = [len(body), len(body) + len(raw)]
            header[name] = {
                "dtype": kinds[array.dtype],
                "shape": [*array.shape],
                "data_offsets": place,
            }
            body += raw
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body


def proves(data: bytes) -> str | None:
    """None where every claim of the file is proved, else what is wrong with it."""
    try:
        verify(parse(io.BytesIO(data)))
    except (Rejected, Unreadable) as error:
        return f"{type(error).__name__}: {error}"
    return None


def chain(shape: Sequence[int], layers: Iterable[Layer]) -> Network:
    """The layers one after another."""
    names = [INPUT]
    rows = []
    for place, layer in enumerate(layers):
        rows.append((f"layer{place}", layer, (names[-1],)))
        names.append(f"layer{place}")
    return Network(shape, rows).eval()


def certified_by(
    network: Network,
    x: NDArray[np.float32],
    label: NDArray[np.int64],
    *,
    norm: str,
    epsilons: Sequence[Fraction],
    clip: bool = True,
    boxes: bool = True,
) -> bytes | None:
    """The certificate that a worker would write; interval bounds for all samples if ``boxes``."""
    with torch.no_grad():
        prediction = network(torch.from_numpy(x)).argmax(1).numpy()
    count = len(x)
    by_ibp = np.full((count, len(epsilons)), boxes)
    samples = Samples(x, label, prediction, np.arange(count) + 100, by_ibp)
    return certificate(network, samples, norm=norm, epsilons=epsilons, clip=clip, about={})


def example_network(*, seed: int = 0) -> Network:
    """Every kind of layer that is covered."""
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int, size: float) -> torch.Tensor:
        return size * torch.randn(*shape, generator=generator)

    return chain(
        (2, 6, 6),
        [
            Normalize(torch.tensor([0.4, 0.5]), torch.tensor([0.5, 0.25])),
            Conv2d(weights(4, 1, 3, 3, size=0.3), weights(4, size=1.0), padding=1, groups=2),
            MaxMin(),
            AvgPool2d(kernel=2, stride=2),
            Conv2d(weights(6, 4, 2, 2, size=0.5), None, stride=(1, 2), padding=(1, 0, 0, 1)),
            ReLU(),
            Reshape(shape=(36,)),
            Linear(weights(8, 36, size=0.3), weights(8, size=0.3)),
            ReLU(),
            Linear(weights(3, 8, size=1.0), weights(3, size=0.1)),
        ],
    )


def example(norm: str = "linf", *, seed: int = 0) -> bytes:
    """A certificate of twelve samples by radii: two are misclassified, and half of the others are
    certified at the second epsilon."""
    network = example_network(seed=seed)
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (12, 2, 6, 6)).astype(np.float32) / np.float32(255)
    with torch.no_grad():
        label = network(torch.from_numpy(x)).argmax(1).numpy()
    label[:2] = (label[:2] + 1) % 3
    first = certified_by(network, x, label, norm=norm, epsilons=[Fraction(1, 10**6)])
    assert first is not None
    half = float(np.median(Forgery(first).tensors["rows.radius"][2:]))
    epsilons = [Fraction(1, 10**6), Fraction(f"{half:.3e}")]
    made = certified_by(network, x, label, norm=norm, epsilons=epsilons)
    assert made is not None
    return made


def example_of_boxes() -> bytes:
    """A certificate by interval bounds: every logit reads one number of the sample, so that the
    ball around all of them is too large; the pixel range cuts the wrong ones."""
    head = torch.zeros(3, 16)
    head[range(3), range(3)] = torch.tensor([1.0, 0.5, 0.5])
    network = chain((16,), [Linear(torch.eye(16), torch.zeros(16)), ReLU(), Linear(head, None)])
    x = np.full((3, 16), 0.95, dtype=np.float32)
    x[:, 0] = (0.95, 0.975, 1.0)
    label = np.zeros(3, dtype=np.int64)
    made = certified_by(network, x, label, norm="linf", epsilons=[Fraction(1, 5), Fraction(3, 5)])
    assert made is not None
    return made
