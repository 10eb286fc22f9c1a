"""What a command's exit status says, as with grep and diff: yes, no, or it was not to be had."""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "NO", "OPEN", "YES"]

#: Done; and where something was asked, the answer is yes.
YES = 0
#: The answer is no: a criterion that is not met, a property that is violated, a report that is not
#: what it says, a machine on which something is missing.
NO = 1
#: No answer: wrong usage (argparse has the same number), no service, a job that failed.
FAILED = 2
#: Neither yes nor no: a property that is not decided, a good signature by an unknown key.
OPEN = 3
#: By Ctrl-C, as shells have it.
INTERRUPTED = 130
