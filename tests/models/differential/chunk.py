"""A process that compares a stretch of seeds: a line before each graph, and its outcome after it.

``python -m tests.models.differential.chunk START COUNT [mutants|constants]``. The line before tells
which graph ended the process, should one do so.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict

from tests.models.differential.comparison import compare, compare_mutant
from tests.models.differential.constants.nodes import compare_constants

#: Address space: a graph whose sizes were not bounded ends here.
MEMORY_BYTES = 8 << 30
#: What is made of each seed.
QUESTIONS = {"graphs": compare, "mutants": compare_mutant, "constants": compare_constants}


def main() -> None:
    """Compare the graphs of the seeds START to START + COUNT - 1."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    start, count, *kind = sys.argv[1:]
    question = QUESTIONS[kind[0] if kind else "graphs"]
    for seed in range(int(start), int(start) + int(count)):
        print(json.dumps({"seed": seed}), flush=True)
        print(json.dumps(asdict(question(seed))), flush=True)


if __name__ == "__main__":
    main()
