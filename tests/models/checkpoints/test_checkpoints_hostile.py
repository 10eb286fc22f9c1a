"""Checkpoints made to hurt: no code runs, no memory is taken, every one has its code."""

from __future__ import annotations

import io
import os
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from models.checkpoints.state_dict import load_checkpoint
from models.errors import ModelError
from service.contract.schemas.problems import InvalidInput
from service.contract.settings import Settings
from service.uploads.pickles import inspect_checkpoint
from tests.models.checkpoints.files import rewritten, saved, state

LIST: dict[str, Any] = {"input": [4], "layers": [{"kind": "linear", "out": 3}]}


def code_of(tmp_path: Path, data: bytes, format: str = "pt") -> str:
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        load_checkpoint(path, format, LIST)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000
    return caught.value.code


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_never_runs(tmp_path: Path, legacy: bool, protocol: int) -> None:
    target = tmp_path / "hacked"
    stream = io.BytesIO()
    torch.save(
        {**state(), "x": Bomb(target)},
        stream,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    assert code_of(tmp_path, stream.getvalue()) == "pickle_refused"
    assert code_of(tmp_path, pickle.dumps(Bomb(target), protocol)) == "pickle_refused"
    assert not target.exists()


def test_code_in_a_plain_pickle_zip(tmp_path: Path) -> None:
    target = tmp_path / "hacked"

    def change(name: str, content: bytes) -> tuple[str, bytes]:
        return name, pickle.dumps(Bomb(target), 2) if name.endswith("data.pkl") else content

    assert code_of(tmp_path, rewritten(saved(state()), change)) == "pickle_refused"
    assert not target.exists()


def test_whole_modules_and_torchscript(tmp_path: Path) -> None:
    assert code_of(tmp_path, saved(nn.Linear(4, 3))) == "pickle_refused"
    more = {"archive/constants.pkl": b"x", "archive/code/__torch__.py": b"y"}
    assert code_of(tmp_path, rewritten(saved(state()), more=more)) == "unsafe_checkpoint"


@pytest.mark.parametrize("traced", [False, True])
def test_a_program_of_torch_is_told_what_to_do(tmp_path: Path, traced: bool) -> None:
    path = tmp_path / "m.pt"
    net = nn.Linear(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(net, torch.zeros(1, 4)) if traced else torch.jit.script(net)
        torch.jit.save(program, path)
    with pytest.raises(InvalidInput) as caught:
        inspect_checkpoint(path, Settings())
    assert caught.value.code == "torchscript_refused"
    assert "state_dict" in (caught.value.hint or "")


def test_zip_directories(tmp_path: Path) -> None:
    good = saved(state())
    deflated = rewritten(good, compression=zipfile.ZIP_DEFLATED)
    assert code_of(tmp_path, deflated) == "unsafe_checkpoint"
    for name in ("../evil", "archive/../../evil", "/etc/passwd", "other/data/0", "archive/x.py"):
        extra = rewritten(good, more={name: b"x"})
        assert code_of(tmp_path, extra) == "unsafe_checkpoint", name
    many = rewritten(good, more={f"archive/data/{n + 10}": b"" for n in range(5001)})
    assert code_of(tmp_path, many) == "unsafe_checkpoint"
    assert code_of(tmp_path, good[:-30]) == "invalid_checkpoint"
    assert code_of(tmp_path, b"PK\x03\x04" + bytes(100)) == "invalid_checkpoint"


def test_a_rewritten_archive_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(rewritten(saved(state())))
    assert load_checkpoint(path, "pt", LIST).classes == 3


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_claim_more_than_they_hold(tmp_path: Path, legacy: bool) -> None:
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)
    assert code_of(tmp_path, saved({"weight": huge}, legacy=legacy)) == "unsafe_checkpoint"
    overlapping = torch.zeros(100).as_strided((50, 50), (1, 1))
    assert code_of(tmp_path, saved({"weight": overlapping}, legacy=legacy)) == "unsafe_checkpoint"
    block = torch.zeros(100_000)
    aliased = {f"{i}.weight": block.view(100, 1000) for i in range(100)}
    assert code_of(tmp_path, saved(aliased, legacy=legacy)) == "unsafe_checkpoint"
    sparse = {"weight": torch.ones(3, 4).to_sparse()}
    assert code_of(tmp_path, saved(sparse, legacy=legacy)) == "pickle_refused"


def test_storages_larger_than_their_data(tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if name.endswith("data.pkl"):
            content = content.replace(b"K\x0c", b"J\x00\x00\x00\x40")
        return name, content

    assert code_of(tmp_path, rewritten(saved(state()), change)) in {
        "invalid_checkpoint",
        "unsafe_checkpoint",
    }
    legacy = saved(state(), legacy=True).replace(b"K\x0c", b"J\x00\x00\x00\x40")
    assert code_of(tmp_path, legacy) == "unsafe_checkpoint"


def test_a_legacy_storage_that_the_file_does_not_fill(tmp_path: Path) -> None:
    """Without the key list's check its bytes would be what was in memory before."""
    good = saved(OrderedDict(state()), legacy=True)
    start = good.rindex(b"\x80\x02]")
    assert code_of(tmp_path, good[:start] + b"\x80\x02].") == "invalid_checkpoint"
    assert code_of(tmp_path, good + bytes(8)) == "invalid_checkpoint"
    assert code_of(tmp_path, good[:-4]) == "invalid_checkpoint"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Half a surrogate pair, which a pickle may hold and no report."""
    names = {f"\ud800.{name}": tensor for name, tensor in nn.Linear(4, 3).state_dict().items()}
    assert code_of(tmp_path, saved(names)) == "invalid_checkpoint"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMPY", bytes(1000)])
def test_foreign_files(tmp_path: Path, data: bytes) -> None:
    assert code_of(tmp_path, data) == "invalid_checkpoint"
    assert code_of(tmp_path, data, "safetensors") == "invalid_checkpoint"


def test_safetensors_that_lie(tmp_path: Path) -> None:
    header = b'{"weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    assert code_of(tmp_path, data, "safetensors") == "invalid_checkpoint"
    assert code_of(tmp_path, (2**60).to_bytes(8, "little") + header, "safetensors") == (
        "invalid_checkpoint"
    )
    assert code_of(tmp_path, saved(state()), "safetensors") == "invalid_checkpoint"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.booleans(), st.data())
def test_damaged_files_end_in_a_model_error(
    tmp_path: Path, legacy: bool, data: st.DataObject
) -> None:
    damaged = bytearray(saved(state(), legacy=legacy))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.pt"
    path.write_bytes(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    try:
        load_checkpoint(path, "pt", LIST)
    except ModelError as error:
        assert error.code != "invalid_model"  # noqa: PT017 - some damage is harmless
