"""The journal forgets deleted jobs, and nothing else, whatever is killed when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import service.contract.storage.compaction
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.compaction import compact
from service.contract.storage.journal import Binding, Journal, JournalReader
from service.contract.storage.store import Store

Make = Callable[..., JobSubmission]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def write(store: Store, *jobs: JobSubmission) -> None:
    journal = Journal(store.folder("journal"))
    for job in jobs:
        journal.append(job).result()
    journal.close()


def delete(store: Store, *jobs: JobSubmission) -> None:
    journal = Journal(store.folder("journal"))
    for job in jobs:
        journal.delete(job.id).result()
    journal.close()


def read(store: Store) -> list[str]:
    return [job.id for job in JournalReader(store.folder("journal")).read()]


def size(store: Store) -> int:
    return sum(path.stat().st_size for path in store.folder("journal").glob("*.jsonl"))


def test_lines_of_deleted_jobs_go_and_their_notes_last(store: Store, make_submission: Make) -> None:
    jobs = [make_submission() for _ in range(10)]
    write(store, *jobs)
    journal = Journal(store.folder("journal"))
    journal.append(jobs[0].model_copy(update={"attempt": 2}), op="retry").result()
    journal.bind(Binding("key", jobs[0].id, "f")).result()
    journal.bind(Binding("other", jobs[9].id, "f")).result()
    journal.close()
    delete(store, *jobs[:5])
    assert compact(store, rest_s=-1) == 7
    assert read(store) == [job.id for job in jobs[5:]]
    reader = JournalReader(store.folder("journal"))
    list(reader.read())
    assert len(reader.take_deletions()) == 5, "a reader that comes late must hear of them"
    assert reader.take_bindings() == [Binding("other", jobs[9].id, "f")]
    assert compact(store, rest_s=-1) == 5
    assert read(store) == [job.id for job in jobs[5:]]
    assert compact(store, rest_s=-1) == 0


def test_an_emptied_journal_leaves_no_file(store: Store, make_submission: Make) -> None:
    job = make_submission()
    write(store, job)
    delete(store, job)
    compact(store, rest_s=-1)
    compact(store, rest_s=-1)
    assert not list(store.folder("journal").glob("*.jsonl"))


def test_what_is_being_written_or_removed_is_left_alone(
    store: Store, make_submission: Make
) -> None:
    job, half_gone, later = (make_submission() for _ in range(3))
    journal = Journal(store.folder("journal"))
    journal.append(job).result()
    delete(store, job)
    before = size(store)
    assert compact(store, rest_s=-1) == 0
    assert size(store) == before
    journal.append(later).result()
    journal.close()
    assert read(store) == [later.id]
    write(store, half_gone)
    delete(store, half_gone)
    store.job_dir(half_gone.id)
    assert compact(store) == 0, "it was written to a moment ago"
    # The first job's line shares its file with one that stays: half of it goes. The folder of the
    # other is still there.
    assert compact(store, rest_s=-1) == 1
    store.remove_job(half_gone.id)
    assert compact(store, rest_s=-1) == 2
    assert compact(store, rest_s=-1) == 1
    assert read(store) == [later.id]


def test_damaged_lines_stay_and_a_torn_end_goes(store: Store, make_submission: Make) -> None:
    job, kept = make_submission(), make_submission()
    write(store, job)
    (path,) = store.folder("journal").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b"no json\n[1]\n" + kept.model_dump_json().encode())
    delete(store, job)
    assert compact(store, rest_s=-1) == 1
    assert path.read_bytes() == b"no json\n[1]\n"


_COMPACT = """
import os, sys
from pathlib import Path
from service.contract.storage import files
from service.contract.storage.compaction import compact
from service.contract.storage.store import Store
calls, fatal = [0], int(sys.argv[2])
def counted(real):
    def call(*arguments, **options):
        calls[0] += 1
        if calls[0] == fatal:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return call
for name in ("fsync", "replace", "unlink", "open"):
    setattr(os, name, counted(getattr(os, name)))
compact(Store(Path(sys.argv[1])), rest_s=-1)
"""


def test_killed_at_any_step_nothing_comes_back_and_nothing_is_lost(
    store: Store, make_submission: Make
) -> None:
    jobs = [make_submission() for _ in range(8)]
    write(store, *jobs[:4])
    write(store, *jobs[4:])
    delete(store, *jobs[1:7])
    expected = [jobs[0].id, jobs[7].id]
    for fatal in range(1, 30):
        ended = subprocess.run(
            [sys.executable, "-c", _COMPACT, str(store.data_dir), str(fatal)],
            env={**os.environ, "PYTHONPATH": str(Path(service.__path__[0]).parent)},
        )
        assert read(store) == expected
        if ended.returncode == 0:
            break
    assert ended.returncode == 0
    while compact(store, rest_s=-1):
        assert read(store) == expected
    assert sum(1 for p in store.folder("journal").glob("*.jsonl") for _ in p.open()) == 2
