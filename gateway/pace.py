"""How fast a queue moves, measured as it moves; nothing is said before something was seen."""

# Of the newest measurement: about the last five count.
WEIGHT = 0.2


class Pace:
    """Seconds that a queue takes for one place."""

    def __init__(self) -> None:
        self.seconds_per_place: float | None = None

    def moved(self, places: int, seconds: float) -> None:
        """The queue moved by so many places in that time."""
        if places <= 0 or seconds < 0:
            return
        measured = seconds / places
        if self.seconds_per_place is None:
            self.seconds_per_place = measured
            return
        # Several places at once are as many measurements.
        weight = 1 - (1 - WEIGHT) ** places
        self.seconds_per_place += weight * (measured - self.seconds_per_place)

    def wait_s(self, position: int) -> float | None:
        """How long whoever stands there will wait; None as long as nothing was measured."""
        return None if self.seconds_per_place is None else position * self.seconds_per_place
