"""The trainings of one job: one, or one for each value of its sweep, one after the other.

What a run leaves lies under its own id (``service.contract.sweeps``), so every run goes on, is
certified and reported as if it were the only one. A value whose run fails ends that run alone; the
job fails where all of them do. The runs of a cascade are its stages: each is trained on what those
before it leave, and where one fails or has too few samples left, the cascade ends.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from models.errors import ModelError
from service.contract.schemas.problems import InvalidInput, Problem, TooLarge
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.contract.sweeps import cascade_of, runs_of, sweep_of, value_text
from workers.jobs.items.remaining_samples import leave_out_certified
from workers.jobs.items.train import check_length, read_samples, train_model
from workers.jobs.items.trained_model import trained
from workers.jobs.items.training_run import config_of
from workers.training.config import TrainingError
from workers.training.loop import Report

__all__ = ["train_runs"]

logger = logging.getLogger(__name__)


def train_runs(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    *,
    progress: Report,
    on_checkpoint: Callable[[], None],
    stop: Callable[[], bool],
    should_pause: Callable[[], bool],
) -> str:
    """Train what is not trained yet; the digests of the models.

    Steps are counted as if all runs were as long as the one at work. Raises as ``train_model``
    does; of a sweep the first run's error, where every run failed.
    """
    sweep, runs = sweep_of(submission), runs_of(submission)
    if sweep is None:
        done = train_model(
            *(store, settings, submission),
            progress=progress,
            on_checkpoint=on_checkpoint,
            stop=stop,
            should_pause=should_pause,
        )
        return str(done["model"]["digest"])
    shared = store.training_dir(submission.id) / "data"
    if any(trained(store, run.id) is None for run in runs):
        # What is wrong with the samples is wrong for all runs, and they are long together.
        _, facts = read_samples(store, settings, runs[0], shared, stop=stop)
        epochs = sum(config_of(run.training or {}).epochs for run in runs)
        check_length(settings, epochs, facts["samples"])
    errors: list[Exception] = []
    digests: list[str] = []
    for place, (run, value) in enumerate(zip(runs, sweep.values, strict=True)):
        name = f"{sweep.name} = {value_text(value)} ({place + 1} of {len(runs)})"

        def say(done: int, total: int, message: str, place: int = place, name: str = name) -> None:
            progress(place * total + done, len(runs) * total, f"{name}: {message}")

        own = shared
        try:
            _known_failure(store, run)
            if cascade_of(submission) is not None and place:
                if errors:
                    raise errors[0]
                own = leave_out_certified(
                    *(store, settings, runs[: place + 1], shared),
                    progress=progress,
                    of=len(runs),
                    on_checkpoint=on_checkpoint,
                    should_pause=should_pause,
                )
            result = train_model(
                *(store, settings, run),
                progress=say,
                on_checkpoint=on_checkpoint,
                stop=stop,
                should_pause=should_pause,
                data_folder=own,
            )
        except (TrainingError, ModelError, InvalidInput, TooLarge) as error:
            logger.warning("job %s: %s failed: %s", submission.id, name, error)
            store.job_dir(run.id)
            store.create_json(store.failure_path(run.id), _problem(error).to_dict())
            errors.append(error)
        else:
            digests.append(result["model"]["digest"])
    if not digests:
        raise errors[0]
    shutil.rmtree(shared, ignore_errors=True)
    return " ".join(digests)


def _known_failure(store: Store, run: JobSubmission) -> None:
    """Raise what an earlier try of this run has found, unless it has a model."""
    found = store.read_json(store.failure_path(run.id))
    if found is not None and trained(store, run.id) is None:
        raise InvalidInput(
            str(found["detail"]),
            code=str(found["code"]),
            hint=found.get("hint"),
            field=found.get("field"),
        )


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    hint, field = getattr(error, "hint", None) or None, getattr(error, "field", None)
    return InvalidInput(
        str(error), code=str(getattr(error, "code", "failed")), hint=hint, field=field
    )
