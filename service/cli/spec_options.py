"""The spec that the options of ``certserve certify`` make, and those that ``verify`` shares."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.contract.schemas.epsilons import parse_epsilon
from service.supervisor.instance_lock import StartError

__all__ = [
    "add_model_options",
    "add_spec_options",
    "further_members",
    "model_members",
    "number_or_all",
    "one_by_one",
    "spec_of",
]

#: Largest layer list that is read from a file.
_MOST_BYTES = 2**20


def add_spec_options(certify: argparse.ArgumentParser) -> None:
    """Add the options that ``spec_of`` reads."""
    certify.add_argument("--norm", choices=("l2", "linf"), required=True)
    certify.add_argument(
        "--epsilon", action="append", required=True, help="36/255 or 0.5; several: 1/255 2/255"
    )
    certify.add_argument("--method", default="auto")
    add_model_options(certify)
    certify.add_argument(
        "--summation",
        choices=("as-uploaded", "partial-sums"),
        help="partial-sums: certify the network rewritten in partial sums, which float32 costs "
        "less radius, in place of the uploaded file (default: as-uploaded)",
    )
    certify.add_argument("--samples", type=number_or_all, help="a number or 'all'")
    certify.add_argument(
        "--input-range",
        help="[low, high] of valid inputs as JSON, each a number or a list with one per feature, "
        "or null: any number (default: [0, 1])",
    )
    certify.add_argument(
        "--criterion",
        nargs=2,
        metavar=("EPSILON", "SHARE"),
        help="exit with 1 unless at least this share (0.6) is certified at this epsilon",
    )
    certify.add_argument("--spec", default="{}", help="further members of the spec, as JSON")


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the options on the work and on the model that ``certify`` and ``verify`` share."""
    command.add_argument(
        "--effort",
        choices=("quick", "standard", "exhaustive"),
        help="how much work 'auto' may do (default: standard)",
    )
    command.add_argument(
        "--mean", help="of a network that was trained on (x - mean) / std: 0.1307, or one for each "
        "channel: 0.4914,0.4822,0.4465",
    )  # fmt: skip
    command.add_argument("--std", help="with --mean: 0.3081, or one for each channel")
    command.add_argument(
        "--architecture", help="of a state dict: a name, a JSON layer list, or a .json file with it"
    )


def number_or_all(text: str) -> int | str:
    """What ``--samples`` takes; ValueError for anything else."""
    return text if text == "all" else int(text)


def one_by_one(arguments: Sequence[str], option: str = "--epsilon") -> list[str]:
    """The same arguments with ``--epsilon A B,C`` as ``--epsilon A --epsilon B --epsilon C``.

    What follows and is no epsilon (the model) stays where it is.
    """
    found: list[str] = []
    inside = first = False
    for argument in arguments:
        parts = [part for part in argument.removeprefix(f"{option}=").split(",") if part]
        if argument.startswith(f"{option}="):
            found += [f"{option}={part}" for part in parts] or [argument]
            inside, first = True, False
        elif argument == option:
            inside = first = True
        elif first or (inside and parts and all(map(_is_epsilon, parts))):
            # What stands first is one, whatever it is: the service says what is wrong with it.
            found += [word for part in parts or [argument] for word in (option, part)]
            first = False
        else:
            found.append(argument)
            inside = False
    return [*found, option] if first else found


def _is_epsilon(text: str) -> bool:
    try:
        parse_epsilon(text)
    except ValueError:
        return False
    return True


def spec_of(options: argparse.Namespace) -> dict[str, Any]:
    """The spec, as JSON has it. Raises StartError that names the option at fault."""
    spec = further_members(options.spec)
    if options.input_range is not None:
        spec["input_range"] = _json("--input-range", options.input_range, "'[0, 255]' or null")
    spec |= {"norm": options.norm, "epsilons": options.epsilon, "method": options.method}
    spec |= model_members(options)
    for name in ("summation", "samples"):
        if getattr(options, name) is not None:
            spec[name] = getattr(options, name)
    if options.criterion is not None:
        epsilon, share = options.criterion
        try:
            wanted = float(share)
        except ValueError as error:
            raise StartError(
                f"--criterion takes an epsilon and a share from 0 to 1: {share}"
            ) from error
        spec["criterion"] = {"epsilon": epsilon, "certified_accuracy": wanted}
    return spec


def further_members(text: str) -> dict[str, Any]:
    """What ``--spec`` holds. Raises StartError where that is no JSON object."""
    spec = _json("--spec", text)
    if not isinstance(spec, dict):
        raise StartError("--spec takes a JSON object, such as '{\"seed\": 1}'")
    return spec


def model_members(options: argparse.Namespace) -> dict[str, Any]:
    """The members of the spec that the options of ``add_model_options`` give."""
    found: dict[str, Any] = {}
    if options.architecture is not None:
        found["architecture"] = _architecture(options.architecture)
    if options.mean is not None or options.std is not None:
        found["normalization"] = _normalization(options.mean, options.std)
    if options.effort is not None:
        found["effort"] = options.effort
    return found


def _json(option: str, text: str, example: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        such = f", such as {example}" if example else ""
        raise StartError(f"{option} takes JSON{such}, not {text[:80]!r}: {error}") from error


def _architecture(text: str) -> Any:
    """A name, a JSON layer list, or what a file holds."""
    if text.lstrip().startswith(("{", "[")):
        return _json("--architecture", text)
    path = Path(text)
    if not path.is_file():
        if path.suffix == ".json":
            raise StartError(f"--architecture: there is no file {text}")
        return text
    if path.stat().st_size > _MOST_BYTES:
        raise StartError(f"--architecture: the file {text} is too large for a layer list")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise StartError(f"--architecture: the file {text} holds no JSON: {error}") from error


def _normalization(mean: str | None, std: str | None) -> dict[str, list[float]]:
    if mean is None or std is None:
        raise StartError("--mean and --std belong together: --mean 0.1307 --std 0.3081")
    return {"mean": _numbers("--mean", mean), "std": _numbers("--std", std)}


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.strip("[] ").split(",")]
    except ValueError as error:
        raise StartError(
            f"{option} takes numbers with commas between them, such as 0.4914,0.4822,0.4465, not "
            f"{text[:80]!r}"
        ) from error
