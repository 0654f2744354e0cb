"""One deployment, whatever its place: brings the wanted number of workers up, keeps the gateway's list of them, scales.

The list of workers (the gateway's --workers-file) is written anew from what the place says whenever something changes.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.deployer import STAGES, Deployer, DeployError, Leftovers, State, Worker, workers_file
from services.model_folder import write_atomically

ASK_EVERY_S = 0.5
# Loading gigabytes and compiling takes minutes.
START_TIMEOUT_S = 1800.0

Tell = Callable[[str], None]


@dataclass
class Deployment:
    """Use one at a time for a name."""

    deployer: Deployer
    list_path: Path
    tell: Tell = lambda line: None
    sleep: Callable[[float], None] = time.sleep

    def scale(self, wanted: Mapping[str, int]) -> list[Worker]:
        """Starts or drains workers until there are so many of each stage, and returns those that serve.

        Draining ones are left to finish by themselves. Raises DeployError when one ends instead of serving.
        """
        for stage, count in wanted.items():
            if stage not in STAGES:
                raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
            have = [one for one in self._live() if one.stage == stage]
            # The newest go first: the oldest have proven themselves.
            for worker in have[count:]:
                self._take_away(worker)
            for _ in range(count - len(have)):
                worker = self.deployer.launch(stage)
                self.tell(f"{stage} {worker.id} starts on {worker.machine or 'a machine'}")
        return self.wait(wanted)

    def wait(self, wanted: Mapping[str, int]) -> list[Worker]:
        """Waits until so many workers of each stage serve, and writes the list whenever it changes."""
        seen = {one.id: one for one in self._live()}
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            workers = {one.id: one for one in self._live()}
            self.write_list()
            for gone in seen.keys() - workers.keys():
                raise DeployError(
                    f"{seen[gone].stage} {gone} ended instead of serving:\n{self.deployer.logs(gone, num_lines=5)}"
                )
            for worker in workers.values():
                if worker.state is State.SERVING and seen.get(worker.id) != worker:
                    self.tell(f"{worker.stage} {worker.id} serves at {worker.address}")
            seen = workers
            serving = [one for one in workers.values() if one.state is State.SERVING]
            if all(sum(one.stage == stage for one in serving) >= count for stage, count in wanted.items()):
                return serving
            if time.monotonic() > until:
                raise DeployError(
                    f"not all workers serve after {START_TIMEOUT_S / 60:.0f} minutes; see their logs"
                )
            self.sleep(ASK_EVERY_S)

    def write_list(self) -> None:
        """What the gateway reads."""
        text = json.dumps(workers_file([one for one in self._live() if one.state is State.SERVING]), indent=1)
        if not self.list_path.exists() or self.list_path.read_text("utf-8") != text:
            write_atomically(self.list_path, text.encode())

    def down(self) -> Leftovers:
        """Ends everything of the deployment."""
        left = self.deployer.teardown()
        self.list_path.unlink(missing_ok=True)
        return left

    def _live(self) -> list[Worker]:
        return [one for one in self.deployer.endpoints() if one.state is not State.DRAINING]

    def _take_away(self, worker: Worker) -> None:
        """Off the list first, so that nothing new comes; then it may finish and end."""
        remaining = [one for one in self._live() if one.id != worker.id and one.state is State.SERVING]
        write_atomically(self.list_path, json.dumps(workers_file(remaining), indent=1).encode())
        self.tell(f"{worker.stage} {worker.id} drains")
        self.deployer.drain(worker.id)
