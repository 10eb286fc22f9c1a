"""``certserve verify-report``: is this report what a service that I trust has said?

Exit status 0: signed by a trusted key, and all that was asked for agrees; 1: not so; 2: this cannot
be read; 3: a good signature, but by an unknown key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from service.access.signing_key import SigningKeys
from service.cli.certify import data_beside
from service.cli.exit_status import FAILED, NO, OPEN, YES
from service.cli.local_service import started_service
from service.cli.remote.connection import show_json
from service.cli.terminal import printable, progress_bar
from service.client import Client
from service.contract.ids import export_id, pair_id
from service.contract.settings import Settings
from service.reports.signing import Finding, UnreadableReport, parse_report, verify

__all__ = [
    "add_parser",
    "dataset_id_of",
    "disagreement",
    "model_id_of",
    "other_totals",
    "reached",
    "spec_of_file",
]

#: What ``--json`` calls each exit status.
VERDICTS = {YES: "valid", NO: "not_valid", FAILED: "no_answer", OPEN: "unknown_key"}
#: Radii that are asked for at once, and the share of one that is left out: its last bits may be
#: others on another machine.
_TOGETHER, _LAST_BITS = 20, 2.0**-20


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add ``verify-report`` to the commands; ``data_dir`` is the default."""
    parser = commands.add_parser("verify-report", help="check the signature of a report")
    parser.add_argument("report", type=Path, help="report.json as it was downloaded")
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument(
        "--key",
        action="append",
        help="trusted public key, 64 hexadecimal digits or a file of such lines; may be repeated",
    )
    trust.add_argument(
        "--url", default=None, help="trust the keys of this service; default: the data directory's"
    )
    parser.add_argument("--api-key", default=os.environ.get("CERTSERVE_KEY"))
    parser.add_argument(
        "--model",
        type=Path,
        help="the model file that the report must be about; files in which an ONNX export keeps "
        "its tensors lie beside it, all under the names that they were sent with",
    )
    parser.add_argument("--dataset", type=Path, help="the data set file that it must be about")
    parser.add_argument("--dataset-labels", type=Path, help="labels of an idx or npy pair")
    parser.add_argument("--rows", type=Path, help="its samples.jsonl; default: from --url")
    parser.add_argument(
        "--recheck",
        type=int,
        default=0,
        metavar="N",
        help="certify N rows again, drawn by chance; takes --model and --dataset",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--data-dir", type=Path, default=data_dir)
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace, console: Console) -> int:
    # The answer alone on stdout, so that a script can take it.
    notes = Console(stderr=True) if options.json else console
    answer: dict[str, Any] = {
        "verdict": None,
        "signature": None,
        "public_key": None,
        "faults": [],
        "rows": None,
        "error": None,
    }
    status = _judge(options, notes, answer)
    if options.json:
        show_json({**answer, "verdict": VERDICTS[status]})
    return status


def _judge(options: argparse.Namespace, console: Console, answer: dict[str, Any]) -> int:
    """The exit status; what was found is said, and put into ``answer``."""

    def say(text: str) -> None:
        console.print(printable(text), highlight=False, markup=False)

    try:
        report = parse_report(options.report.read_bytes())
        found = verify(report, _trusted(options))
    except (OSError, UnreadableReport) as error:
        answer["error"] = f"unreadable: {error}"
        say(answer["error"])
        return FAILED
    answer["signature"] = found.value
    say(found.value)
    if found in (Finding.UNKNOWN_KEY, Finding.VALID):
        answer["public_key"] = report["signature"]["public_key"]
    if found is Finding.UNKNOWN_KEY:
        say(f"it names the key {answer['public_key']}")
        return OPEN
    if found is not Finding.VALID:
        return NO
    try:
        if report.get("model") is None and (options.model or options.rows or options.recheck > 0):
            raise _CannotCheck("it is about several networks: check the reports of its stages")
        faults = _differing_files(report, options) or _recheck(report, options, console, answer)
    except _CannotCheck as error:
        answer["error"] = f"cannot be checked: {error}"
        say(answer["error"])
        return FAILED
    answer["faults"] = faults
    for fault in faults:
        say(fault)
    return NO if faults else YES


class _CannotCheck(ValueError):
    """What was asked for needs something that is not there."""


def _trusted(options: argparse.Namespace) -> set[str]:
    """The public keys that count. Raises UnreadableReport, OSError."""
    if options.url is not None:
        with Client(options.url, key=options.api_key) as client:
            answer = client.signing_keys()
        return {answer["public_key"], *answer["former"]}
    if options.key is None:
        secret = Settings().signing_key_file
        keys = SigningKeys(options.data_dir.absolute() / "signing", secret)
        return {keys.public(), *keys.former()} if keys.exists() else set()
    found: set[str] = set()
    for given in options.key:
        lines = [given] if re.fullmatch(r"[0-9a-fA-F]{64}", given) else _lines(Path(given))
        found.update(line.lower() for line in lines)
    return found


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not lines or not all(re.fullmatch(r"[0-9a-fA-F]{64}", line) for line in lines):
        raise UnreadableReport(f"{path} is no list of public keys, 64 hexadecimal digits a line")
    return lines


def _differing_files(report: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """What the report is not about, of the files that were given."""
    faults = []
    for given, digest, what, named in (
        (options.model, model_id_of, "model", (report.get("model") or {}).get("id")),
        (
            options.dataset,
            lambda path: dataset_id_of(path, options.dataset_labels),
            "data set",
            (report.get("dataset") or {}).get("id"),
        ),
        (options.rows, _sha256, "file of rows", report.get("samples_digest")),
    ):
        if given is not None and (found := digest(given)) != named:
            faults.append(f"the report is about another {what}: {named}, not {found}")
    return faults


def model_id_of(path: Path) -> str:
    """The id of a model file, or of the ONNX export that it is the first file of."""
    try:
        beside = data_beside(path)
    except OSError as error:
        raise _CannotCheck(str(error)) from error
    if not beside:
        return _sha256(path)
    return export_id((path.name, _sha256(path)), [(one.name, _sha256(one)) for one in beside])


def dataset_id_of(path: Path, labels: Path | None) -> str:
    return _sha256(path) if labels is None else pair_id(_sha256(path), _sha256(labels))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _CannotCheck(str(error)) from error


def _recheck(
    report: Mapping[str, Any],
    options: argparse.Namespace,
    console: Console,
    answer: dict[str, Any],
) -> list[str]:
    """Certify some rows again and say what does not agree.

    The service that certifies is one of this machine's own: nobody checks themselves.
    """
    if options.recheck <= 0:
        return []
    if report.get("property") is not None:
        raise _CannotCheck("it is about a property, not about rows: certserve verify asks it again")
    if options.model is None or options.dataset is None:
        raise _CannotCheck("--recheck takes --model and --dataset, the files")
    claimed = _claimed_rows(report, options)
    faults = other_totals(report, claimed)
    chosen = secrets.SystemRandom().sample(claimed, min(options.recheck, len(claimed)))
    with ExitStack() as stack:
        url = stack.enter_context(started_service(options.data_dir))
        client = stack.enter_context(Client(url))

        def certified(rows: Sequence[Mapping[str, Any]], **changes: object) -> dict[int, Any]:
            spec = {**spec_of_file(report), "indices": sorted(row["index"] for row in rows)}
            job = client.certify(
                options.model,
                options.dataset,
                {**spec, **changes},
                dataset_labels=options.dataset_labels,
                model_data=data_beside(options.model),
                force=True,
            )
            with progress_bar(console) as show:
                client.wait(job["id"], on_progress=show)
            return {row["index"]: row for row in client.rows(job["id"])}

        again = certified(chosen)
        wrong = [fault for row in chosen if (fault := disagreement(row, again[row["index"]]))]
        # A search may end elsewhere: what it did not reach is asked itself.
        short = [row for row in chosen if not reached(row, again[row["index"]])]
        for start in range(0, len(short), _TOGETHER):
            rows = short[start : start + _TOGETHER]
            asked = [row["radius"] * (1.0 - _LAST_BITS) for row in rows]
            found = certified(rows, epsilons=asked, radius=False, criterion=None)
            wrong += [
                f"row {row['index']}: the radius {row['radius']:g} was claimed, and is not "
                "certified here"
                for place, row in enumerate(rows)
                if not found[row["index"]]["certified"][place]
            ]
    confirmed = len(chosen) - len({fault.partition(":")[0] for fault in wrong})
    answer["rows"] = {"rechecked": len(chosen), "confirmed": confirmed}
    console.print(f"{confirmed} of {len(chosen)} rows confirmed", highlight=False)
    return faults + wrong


def spec_of_file(report: Mapping[str, Any]) -> dict[str, Any]:
    """What asks the same of the file that was certified; ``samples`` is left out.

    A file that was made of the upload (``rewritten_from``) has its only output's scores, and of a
    state dict its graph and its normalisation: what the spec says of the upload is not said of it.
    """
    gone = {"samples"}
    made_of = report["model"].get("rewritten_from")
    if made_of is not None:
        gone |= {"summation", "output", "binary", "architecture"}
        gone |= {"normalization"} if made_of["format"] != "onnx" else set()
    return {name: value for name, value in report["spec"].items() if name not in gone}


def _claimed_rows(report: Mapping[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that the report's digest names."""
    if options.rows is not None:
        data = options.rows.read_bytes()
    elif options.url is not None:
        with Client(options.url, key=options.api_key) as client:
            data = client.rows_file(report["job_id"])
    else:
        raise _CannotCheck("--recheck takes --rows or --url, for the rows that were claimed")
    if "sha256:" + hashlib.sha256(data).hexdigest() != report.get("samples_digest"):
        raise _CannotCheck("the rows are not those that the report names")
    return [json.loads(line) for line in data.splitlines()]


def other_totals(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the report says of all its rows together, and they do not."""
    samples = (report.get("dataset") or {}).get("samples")
    faults = [f"the report has {samples} samples, and {len(rows)} rows"][: samples != len(rows)]
    for place, result in enumerate(report["results"]):
        for name in ("certified", "falsified"):
            count = sum(bool(row[name][place]) for row in rows)
            if result[name] != count:
                faults.append(
                    f"at epsilon {result['epsilon']:g} the report has {result[name]} samples "
                    f"{name}, and its rows have {count}"
                )
    told = report.get("radius")
    if told is not None and rows:
        cap = told["cap"]
        sizes = [cap if row["unbounded"] else min(row["radius"] or 0.0, cap) for row in rows]
        mean = math.fsum(sizes) / len(rows)
        if not math.isclose(told["mean"], mean, rel_tol=1e-9, abs_tol=1e-300):
            faults.append(
                f"the report has the mean radius {told['mean']:g}, its rows have {mean:g}"
            )
    return faults


def disagreement(row: Mapping[str, Any], again: Mapping[str, Any]) -> str | None:
    """What of a claimed row does not hold, its radius apart; a sharper verdict is no
    disagreement."""
    where = f"row {row['index']}"
    for name in ("label", "prediction"):
        if row[name] != again[name]:
            return f"{where}: {name} {row[name]} was claimed, {again[name]} is found"
    pairs = zip(row["certified"], again["certified"], strict=True)
    if any(claimed and not confirmed for claimed, confirmed in pairs):
        return f"{where}: what was claimed as certified is not certified here"
    pairs = zip(row["falsified"], again["certified"], strict=True)
    if any(claimed and certified for claimed, certified in pairs):
        return f"{where}: what was claimed as falsified is certified here"
    if row["unbounded"] and not again["unbounded"]:
        return f"{where}: no input was claimed to change the answer; some may here"
    return None


def reached(row: Mapping[str, Any], again: Mapping[str, Any]) -> bool:
    """Whether a claimed radius, if there is one, was found once more; an unbounded one is compared
    with the verdicts."""
    claimed = row["radius"] or 0.0
    return bool(again["unbounded"] or claimed * (1.0 - _LAST_BITS) <= (again["radius"] or 0.0))
