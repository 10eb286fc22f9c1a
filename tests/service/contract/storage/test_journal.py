"""What the journal acknowledged is there after any death, and one fsync serves many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.contract.schemas.problems import Unavailable
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.journal import Journal, JournalReader

Make = Callable[..., JobSubmission]


def test_everything_acknowledged_is_read_back(tmp_path: Path, make_submission: Make) -> None:
    journal = Journal(tmp_path)
    jobs = [make_submission() for _ in range(200)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda job: journal.append(job).result(timeout=10), jobs))
    journal.close()
    found = list(JournalReader(tmp_path).read())
    assert {job.id for job in found} == {job.id for job in jobs}
    assert next(job for job in found if job.id == jobs[0].id) == jobs[0]


def test_a_reader_reads_only_what_is_new(tmp_path: Path, make_submission: Make) -> None:
    reader = JournalReader(tmp_path)
    first, second = Journal(tmp_path), Journal(tmp_path)
    jobs = [make_submission() for _ in range(3)]
    first.append(jobs[0]).result()
    assert [job.id for job in reader.read()] == [jobs[0].id]
    assert list(reader.read()) == []
    second.append(jobs[1]).result()
    first.append(jobs[2]).result()
    assert {job.id for job in reader.read()} == {jobs[1].id, jobs[2].id}
    reader.rewind()
    assert len(list(reader.read())) == 3
    first.close()
    second.close()


def test_a_torn_last_line_is_skipped_until_it_is_whole(
    tmp_path: Path, make_submission: Make
) -> None:
    journal = Journal(tmp_path)
    jobs = [make_submission(), make_submission()]
    for job in jobs:
        journal.append(job).result()
    journal.close()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in (1, 10, 200):
        path.write_bytes(whole[:-cut])
        reader = JournalReader(tmp_path)
        assert [job.id for job in reader.read()] == [jobs[0].id]
        path.write_bytes(whole)
        assert [job.id for job in reader.read()] == [jobs[1].id]


def test_a_damaged_line_hides_no_other(tmp_path: Path, make_submission: Make) -> None:
    journal = Journal(tmp_path)
    jobs = [make_submission() for _ in range(3)]
    for job in jobs:
        journal.append(job).result()
    journal.close()
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 50 + b"\n" + lines[2])
    assert [job.id for job in JournalReader(tmp_path).read()] == [jobs[0].id, jobs[2].id]


def test_a_journal_that_cannot_be_written_refuses_and_recovers(
    tmp_path: Path, make_submission: Make
) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder)  # the folder is missing
    with pytest.raises(Unavailable):
        journal.append(make_submission()).result(timeout=10)
    folder.mkdir()
    job = make_submission()
    journal.append(job).result(timeout=10)
    journal.close()
    assert [found.id for found in JournalReader(folder).read()] == [job.id]
    with pytest.raises(Unavailable):
        journal.append(job).result(timeout=10)


_APPENDER = """
import sys
from pathlib import Path
from service.contract.ids import new_job_id
from service.contract.storage.journal import Journal
from service.contract.schemas.submissions import JobSubmission
journal = Journal(Path(sys.argv[1]))
while True:
    job = JobSubmission(
        id=new_job_id(), kind="certify", spec={}, model=None, dataset=None, created_at=""
    )
    journal.append(job).result()
    print(job.id, flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_read_back(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    process = subprocess.Popen(
        [sys.executable, "-c", _APPENDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().decode().strip() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += process.stdout.read().decode().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    found = {job.id for job in JournalReader(tmp_path).read()}
    assert set(acknowledged) <= found
    assert len(acknowledged) >= 50
