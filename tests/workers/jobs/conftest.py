"""A real Redis, a data directory, and submissions of a tiny network on made-up images."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from redis import Redis
from redis.exceptions import RedisError

from service.contract.ids import new_job_id
from service.contract.ledger.connection import connect
from service.contract.ledger.leases import Lease
from service.contract.ledger.ledger import Ledger
from service.contract.processes import python_module, spawn, wait_until
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.contract.times import now, rfc3339
from service.supervisor.embedded_redis import find_binary, socket_path, write_configuration
from tests.horses import horses_of
from workers.jobs.inspection import sandbox
from workers.jobs.runtime import held_lease, template
from workers.jobs.runtime.fork_server import ForkServer

SIDE, CLASSES = 6, 3

#: Enough for a machine that does other things too; nobody waits so long where all is well.
WAIT_S = 150.0


def tiny_onnx(path: Path, *, scale: float = 1.0, seed: int = 0, final: str = "") -> Path:
    """conv(2, 3x3) - relu - dense(3) on [N, 1, 6, 6], and one more operator if asked for."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        value = (scale * rng.standard_normal(shape) / 3).astype(np.float32)
        return numpy_helper.from_array(value, name)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["h"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["g" if final else "y"], transB=1),
    ]
    if final:
        nodes.append(helper.make_node(final, ["g"], ["y"], axis=1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [
            weight("w0", 2, 1, 3, 3),
            weight("b0", 2),
            weight("w1", CLASSES, 2 * SIDE * SIDE),
            weight("b1", CLASSES),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def tiny_npz(path: Path, *, samples: int = 30, seed: int = 0) -> Path:
    """uint8 images [N, 6, 6, 1] with labels."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (samples, SIDE, SIDE, 1), dtype=np.uint8)
    np.savez(path, x=x, y=rng.integers(0, CLASSES, samples))
    return path


class Corridor:
    """Everything between the journal and the report, on one data directory, without HTTP."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.store = Store(settings.data_dir)
        self.redis = connect(settings)
        self.ledger = Ledger(self.redis, settings)

    def blob(self, path: Path) -> str:
        """Put a file into the store; its digest."""
        with self.store.writer(limit=2**30) as writer:
            writer.write(path.read_bytes())
            return writer.publish().digest

    def submit(
        self, model: Path | None = None, data: Path | None = None, **spec: object
    ) -> JobSubmission:
        """Enter a certification into the ledger."""
        model = model or tiny_onnx(self.folder / "tiny.onnx")
        data = data or tiny_npz(self.folder / "tiny.npz")
        kind = "onnx" if model.suffix == ".onnx" else model.suffix.lstrip(".")
        submission = JobSubmission(
            id=new_job_id(),
            kind="certify",
            spec=Spec.model_validate({"norm": "l2", "epsilons": [0.01, 0.1], **spec}).normal(),
            model=ModelSource(
                digest=self.blob(model),
                format=kind,  # type: ignore[arg-type]
                name=model.name,
                size=model.stat().st_size,
            ),
            dataset=DatasetSource(kind="npz", name=data.name, blobs={"file": self.blob(data)}),
            created_at=rfc3339(now()),
        )
        assert self.ledger.create(submission)
        return submission

    def outcome(self, job: JobSubmission, timeout_s: float = WAIT_S) -> dict:
        """How the job ended."""
        path = self.store.outcome_path(job.id)
        assert wait_until(path.exists, timeout_s), self.ledger.get(job.id)
        outcome = self.store.read_json(path)
        assert outcome is not None
        return outcome


def work_horses(worker: subprocess.Popen[bytes]) -> list[int]:
    """The pids of a worker's work horses."""
    return horses_of(worker.pid)


def held_by(worker: subprocess.Popen[bytes]) -> Lease | None:
    """What the worker's work horse holds, as the worker itself would know it: the held lease."""
    for path in Path(f"/proc/{worker.pid}/fd").iterdir():
        try:
            if "memfd:certserve-lease" not in os.readlink(path):
                continue
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # closed by now
            continue
        try:
            return held_lease.read(descriptor)
        finally:
            os.close(descriptor)
    return None


def in_a_shard(worker: subprocess.Popen[bytes]) -> bool:
    """Whether the worker's horse is at a shard, and both of them know."""
    held = held_by(worker)
    return held is not None and held.item.startswith("shard:")


def answers(client: Redis) -> bool:
    """Whether there is a Redis at the other end."""
    try:
        return bool(client.ping())
    except RedisError:
        return False


@pytest.fixture
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("redis")
    (folder / "run").mkdir()
    path = socket_path(folder)
    process = spawn([str(find_binary()), str(write_configuration(folder, path))])
    client = Redis(unix_socket_path=str(path))
    assert wait_until(lambda: answers(client), WAIT_S)
    client.close()
    yield f"unix://{path}"
    process.kill()
    process.wait()
    shutil.rmtree(path.parent)


@pytest.fixture
def corridor(tmp_path: Path, redis_url: str) -> Iterator[Corridor]:
    settings = Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        samples_per_shard=10,
        lease_ttl_s=5.0,
        retry_delay_s=0.1,
        device="cpu",
        # Threads of tiny tensors would wait for each other while other tests run.
        training_threads=1,
    )
    made = Corridor(tmp_path, settings)
    yield made
    made.redis.close()


@pytest.fixture(scope="session")
def template_process() -> Iterator[ForkServer]:
    """What a worker's inspections are forked from."""
    server = template.start()
    assert server.ready(WAIT_S)
    yield server
    server.close()


@pytest.fixture
def forked_inspections(template_process: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspections are forked, as under a worker: a fresh interpreter would import for seconds."""
    monkeypatch.setattr(sandbox, "_forks", template_process)


@pytest.fixture
def start_worker(corridor: Corridor) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts real worker processes on the corridor; all are ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> subprocess.Popen[bytes]:
        settings = corridor.settings
        worker = spawn(
            python_module("workers.jobs.runtime.worker"),
            environment={
                **os.environ,
                "CERTSERVE_DATA_DIR": str(settings.data_dir),
                "CERTSERVE_REDIS_URL": str(settings.redis_url),
                "CERTSERVE_SAMPLES_PER_SHARD": str(settings.samples_per_shard),
                "CERTSERVE_LEASE_TTL_S": str(settings.lease_ttl_s),
                "CERTSERVE_RETRY_DELAY_S": str(settings.retry_delay_s),
                "CERTSERVE_TRAINING_THREADS": str(settings.training_threads),
                **environment,
            },
        )
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()
