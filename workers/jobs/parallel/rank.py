"""One rank of a data-parallel training: a fresh interpreter that its work horse starts.

It has no Redis address and no key, and dies with the work horse. Arguments: rank, the parent's pid,
the descriptor of the connection to it, the folder that holds ``request.json`` (``launch.Request``).
"""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from service.contract.processes import die_with_parent

__all__ = ["main"]


def main() -> None:
    """Train, tell the work horse, and end without waiting for any other rank."""
    rank, parent, descriptor, folder = sys.argv[1:]
    # First of all: what is imported below takes seconds.
    die_with_parent(int(parent))
    from workers.jobs.parallel.messages import Failure, send

    connection = Connection(int(descriptor))
    status = 0
    try:
        _train(int(rank), connection, Path(folder))
    except BaseException as error:  # noqa: BLE001 - an outermost frame; the work horse decides
        status = 1
        try:
            send(connection, failed=Failure.of(error).message())
        except OSError:
            status = 2  # nobody is there to read it
    finally:
        sys.stderr.flush()
        # A communication library may wait for ranks that are gone.
        os._exit(status)


def _train(rank: int, connection: Connection, folder: Path) -> None:
    import torch

    from service.contract.logs import configure_logging
    from workers.jobs.hardware.allocator import keep_freed_memory
    from workers.jobs.hardware.device import device_of
    from workers.jobs.items.training_run import config_of, samples_in
    from workers.jobs.parallel.launch import RENDEZVOUS, Request
    from workers.jobs.parallel.messages import receive, send
    from workers.training.distributed.group import joined
    from workers.training.loop import Paused, train

    request = Request.read(folder)
    configure_logging("json" if request.log_format == "json" else "text")
    torch.set_num_threads(request.threads)
    keep_freed_memory()
    if request.device == "cuda":
        torch.cuda.set_device(rank)
    device = device_of(request.device)
    config = config_of(request.plan)
    data, _ = samples_in(Path(request.data))
    asked = False

    def should_pause() -> bool:
        nonlocal asked
        if not asked and connection.poll():
            # The end of the file is the end of the work horse, or of its interest in this run.
            asked = bool(receive(connection)["pause"])
        return asked

    with joined(
        rank, config.devices, folder / RENDEZVOUS, device, limit_s=request.limit_s
    ) as ranks:
        end = "trained"
        try:
            train(
                config,
                data,
                device=device,
                checkpoint=Path(request.checkpoint),
                checkpoint_s=request.checkpoint_s,
                ranks=ranks,
                # Every rank tells; the work horse listens to the first one.
                progress=lambda *values: send(connection, progress=values),
                on_epoch=lambda history: send(connection, epoch=history),
                on_checkpoint=lambda: send(connection, checkpoint=True),
                should_pause=should_pause,
            )
        except Paused:
            end = "paused"
        send(connection, end=end)


if __name__ == "__main__":
    main()
