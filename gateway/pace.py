"""How fast a queue moves, measured as it moves; nothing is said before something was seen."""

# What was measured so many places ago counts little: queues move in bursts, as batches end, so fewer would say little.
DECAY = 0.9


class Pace:
    """Seconds that a queue takes for one place: of what was seen lately the time, and the places, in all."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._places = 0.0

    def moved(self, places: int, seconds: float) -> None:
        """The queue moved by so many places in that time."""
        if places <= 0 or seconds < 0:
            return
        kept = DECAY**places
        self._seconds = kept * self._seconds + seconds
        self._places = kept * self._places + places

    def wait_s(self, position: int) -> float | None:
        """How long whoever stands there will wait; None as long as nothing was measured."""
        return position * self._seconds / self._places if self._places else None
