"""The log line of each event of a run, so that the log reads as its story. Prompts and texts of errors are in none."""

import logging

from gateway.events.run_state import CANCELLED, image_name
from triptych.v1.pipeline_pb2 import Event, RunState

log = logging.getLogger(__name__)


def log_event(run: str, event: Event) -> None:
    """Of what happens to a run and its images; progress, previews, queue positions and timings have no line."""
    match event.WhichOneof("kind"):
        case "state" if event.state.state == RunState.RUN_STATE_RUNNING:
            log.info("%s begins", run, extra={"event": "run_started", "run": run})
        case "state" if event.state.state == RunState.RUN_STATE_AWAITING_SELECTION:
            log.info("%s waits for a selection", run, extra={"event": "run_awaiting", "run": run})
        case "stage_started":
            started = event.stage_started
            for index in started.indexes:
                image = _short(image_name(run, started.stage, index))
                log.info(
                    "%s: %s is asked of %s, attempt %d",
                    run,
                    image,
                    started.worker,
                    started.attempt,
                    extra={
                        "event": "attempt_started",
                        "run": run,
                        "image": image,
                        "worker": started.worker,
                        "attempt": started.attempt,
                    },
                )
        case "image_ready":
            image = _short(event.image_ready.image.name)
            log.info(
                "%s: %s is ready", run, image, extra={"event": "image_ready", "run": run, "image": image}
            )
        case "warning":
            _log_warning(run, event.warning)
        case "selected":
            count = sum(len(choice.indexes) for choice in event.selected.choices)
            log.info("%s: %d more images are selected", run, count, extra={"event": "selected", "run": run})
        case "finished":
            state = RunState.Name(event.finished.state).removeprefix("RUN_STATE_").lower()
            reason = event.finished.error.reason
            log.info(
                "%s ended: %s%s",
                run,
                state,
                f" ({reason})" if reason else "",
                extra={"event": "run_ended", "run": run, "state": state, "reason": reason},
            )


def _log_warning(run: str, warning: Event.Warning) -> None:
    image = _short(warning.image)
    if not image:
        log.info(
            "%s: %s",
            run,
            warning.reason,
            extra={"event": "run_warning", "run": run, "reason": warning.reason},
        )
        return
    is_cancelled = warning.given_up and warning.reason == CANCELLED
    log.log(
        logging.INFO if is_cancelled else logging.WARNING,
        "%s: %s %s: %s",
        run,
        image,
        "will not be made" if warning.given_up else "has to be made again, or waits for a worker",
        warning.reason,
        extra={
            "event": "image_given_up" if warning.given_up else "attempt_failed",
            "run": run,
            "image": image,
            "reason": warning.reason,
        },
    )


def _short(image: str) -> str:
    return image.rpartition("/")[2]
