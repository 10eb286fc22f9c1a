"""``python -m service.contract.catalogue README.md``: write its tables of methods anew."""

from __future__ import annotations

import sys
from pathlib import Path

from service.contract.catalogue.readme import with_tables


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 where the file has no place for the tables."""
    path = Path(arguments[0] if arguments else "README.md")
    try:
        path.write_text(with_tables(path.read_text()))
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
