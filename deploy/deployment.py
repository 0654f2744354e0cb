"""One deployment on any target: starts workers, scales them, and keeps the gateway's list of them.

The list of workers (the gateway's --workers-file) is written anew from the target's state whenever something changes.
What was requested is stored first, so that `status` can compare with it and `watch` can restore it.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from deploy.deployer import STAGES, Deployer, DeployError, Leftovers, State, Worker, workers_file
from deploy.gateway import Gateway
from deploy.requested_state import Requested, RequestedState
from services.private_files import make_private_folder
from services.weights.model_folder import write_atomically

ASK_EVERY_S = 0.5
# Loading gigabytes and compiling takes minutes.
START_TIMEOUT_S = 1800.0

Tell = Callable[[str], None]


@dataclass
class Deployment:
    """Use one at a time for a name."""

    deployer: Deployer
    # None where the gateway finds its workers by itself.
    list_path: Path | None
    tell: Tell = lambda line: None
    sleep: Callable[[float], None] = time.sleep
    # None where nobody asks later what was requested.
    state: RequestedState | None = None

    def scale(self, wanted: Mapping[str, int]) -> list[Worker]:
        """Starts or drains workers until there are so many of each stage, and returns those that serve.

        Draining ones are left to finish by themselves. Raises DeployError when one ends instead of serving.
        """
        for stage in wanted:
            if stage not in STAGES:
                raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
        self.check_owner()
        started = []
        with self._locked():
            if self.state is not None:
                self.state.request_workers(wanted)
            live = self._live()
            for stage, count in wanted.items():
                have = [one for one in live if one.stage == stage]
                # The newest go first: the oldest have proven themselves.
                for worker in have[count:]:
                    self._take_away(worker)
                started += [self._launch(stage) for _ in range(count - len(have))]
        return self.wait(wanted, started)

    def wait(self, wanted: Mapping[str, int], started: Sequence[Worker] = ()) -> list[Worker]:
        """Waits until so many workers of each stage serve, and writes the list whenever it changes.

        Those of `started` may not end meanwhile, nor may any other that was seen.
        """
        seen = {one.id: one for one in started}
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            workers = {one.id: one for one in self._live()}
            self.write_list(list(workers.values()))
            for worker in [
                *(one for id, one in seen.items() if id not in workers),
                *(one for one in workers.values() if one.state is State.FAILING),
            ]:
                raise DeployError(
                    f"{worker.stage} {worker.id} ended instead of serving:\n{self._last_words(worker)}"
                )
            self._tell_news(seen, workers)
            seen = workers
            serving = [one for one in workers.values() if one.state is State.SERVING]
            if all(sum(one.stage == stage for one in serving) >= count for stage, count in wanted.items()):
                return serving
            if time.monotonic() > until:
                raise DeployError(
                    f"not all workers serve after {START_TIMEOUT_S / 60:.0f} minutes; see their logs"
                )
            self.sleep(ASK_EVERY_S)

    def keep(self, rest: Callable[[], None], gateway: Gateway | None = None) -> None:
        """Starts a worker for each that is missing of the requested ones, and the gateway if it has ended.

        Without a stored state, as many as there are now are kept. `rest` is called between two looks. Ends with what it
        raises, or when `down` deletes the requested state. Nobody is taken away, should one that was out of sight come back.
        """
        self.check_owner()
        seen = {one.id: one for one in self._live()}
        if self.state is not None and not self._requested().workers:
            self.state.request_workers(Counter(one.stage for one in seen.values()))
        wanted = self._requested().workers or Counter(one.stage for one in seen.values())
        self.tell(f"keeps {', '.join(f'{number} {stage}' for stage, number in wanted.items()) or 'nothing'}")
        while True:
            if self.state is not None:
                requested = self.state.read()
                if requested is None:
                    self.tell("the deployment was ended")
                    return
                wanted = requested.workers
            try:
                seen = self._replaced(seen, wanted)
                self._revive(gateway)
            except DeployError as error:
                # Later, perhaps: a machine may come back, or room may be made.
                self.tell(str(error))
            rest()

    def _revive(self, gateway: Gateway | None) -> None:
        request = self._requested().gateway
        if gateway is None or request is None or gateway.is_running():
            return
        self.tell("the gateway is gone and is started again")
        self.tell(gateway.start(request).line)

    def _requested(self) -> Requested:
        return (self.state.read() if self.state is not None else None) or Requested()

    def _locked(self) -> AbstractContextManager[None]:
        return self.state.locked() if self.state is not None else nullcontext()

    def check_owner(self) -> None:
        """Raises DeployError if another user created the deployment."""
        if self.state is not None:
            self.state.check_owner()
        self.deployer.check_owner()

    def _replaced(self, seen: Mapping[str, Worker], wanted: Mapping[str, int]) -> dict[str, Worker]:
        with self._locked():
            workers = {one.id: one for one in self._live()}
            self.write_list(list(workers.values()))
            self._tell_news(seen, workers)
            for gone in seen.keys() - workers.keys():
                self.tell(f"{seen[gone].stage} {gone} is gone or drains")
            there = Counter(one.stage for one in workers.values())
            for stage, number in wanted.items():
                for _ in range(number - there[stage]):
                    worker = self._launch(stage)
                    workers[worker.id] = worker
        return workers

    def write_list(self, workers: Sequence[Worker] | None = None) -> None:
        """What the gateway reads."""
        if self.list_path is None:
            return
        live = self._live() if workers is None else workers
        text = json.dumps(workers_file([one for one in live if one.state is State.SERVING]), indent=1)
        if not self.list_path.exists() or self.list_path.read_text("utf-8") != text:
            make_private_folder(self.list_path.parent)
            write_atomically(self.list_path, text.encode())

    def down(self) -> Leftovers:
        """Ends everything of the deployment."""
        self.check_owner()
        if self.state is not None:
            # First, so that nobody restores what ends.
            self.state.delete()
        left = self.deployer.teardown()
        if self.list_path is not None:
            self.list_path.unlink(missing_ok=True)
        return left

    def _live(self) -> list[Worker]:
        return [one for one in self.deployer.endpoints() if one.state is not State.DRAINING]

    def _launch(self, stage: str) -> Worker:
        worker = self.deployer.launch(stage)
        self.tell(f"{stage} {worker.id} starts on {worker.machine or 'a machine'}")
        return worker

    def _take_away(self, worker: Worker) -> None:
        """Off the list first, so that nothing new comes; then it may finish and end."""
        self.write_list([one for one in self._live() if one.id != worker.id])
        self.tell(f"{worker.stage} {worker.id} drains")
        self.deployer.drain(worker.id)

    def _tell_news(self, seen: Mapping[str, Worker], workers: Mapping[str, Worker]) -> None:
        for worker in workers.values():
            before = seen.get(worker.id)
            if worker.state is State.SERVING and (before is None or before.state is not State.SERVING):
                self.tell(f"{worker.stage} {worker.id} serves at {worker.address}")
            if worker.note and (before is None or before.note != worker.note):
                self.tell(f"{worker.stage} {worker.id}: {worker.note}")

    def _last_words(self, worker: Worker) -> str:
        try:
            return self.deployer.logs(worker.id, num_lines=5)
        except DeployError as error:
            return str(error)
