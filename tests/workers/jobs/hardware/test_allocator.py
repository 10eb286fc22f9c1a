"""A training process that keeps freed memory asks the kernel for fewer pages."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from workers.jobs.hardware.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = bytearray(32 << 20)
del block
before = faults()
for _ in range(4):
    block = bytearray(32 << 20)
    del block
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_are_used_again() -> None:
    assert faults("kept") * 8 < faults("given back")
