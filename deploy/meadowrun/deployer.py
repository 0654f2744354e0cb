"""Deployment target `meadowrun`: workers on EC2 machines, one on each.

A machine's tags have the deployment, the stage and the state of its worker: nothing else is remembered, but
launches that are under way. Meadowrun chooses machines, starts them and runs the job; whether a worker serves is asked of
the worker, and machines without one are given back at once.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.deployer import STAGES, DeployError, Leftovers, Offer, State, Worker
from deploy.health_check import health_error
from deploy.meadowrun.bridge_client import Bridge
from deploy.meadowrun.jobs import PORT, Needs, Settings, files_of, job_of, started_from
from deploy.owner import current_owner, foreign_error
from triptych.credentials import Credentials

# A machine whose launch was cut off is given back after so long.
LAUNCH_TIMEOUT_S = 1200.0
# A job that does not answer yet is asked for on its machine so often.
LOOK_EVERY_S = 2.0
# Behind a job's own words Meadowrun's clean-up may have written so many lines.
CLEANUP_LINES = 100
# What is asked for at once while a log is followed.
MAX_FOLLOWED_LINES = 1000
NUM_KNOWN_LINES = 20
HOURS_IN_A_MONTH = 730.0
# Of the folder of `triptych certs`: with what the gateway calls stages.
CLIENT_FILES = ("ca.crt", "gateway-client.crt", "gateway-client.key")


# For what has no network to compute: fetching weights.
WITHOUT_GPU = Needs(gpus=None, gpu_memory=None, flags=None)


@dataclass
class _Launch:
    worker: Worker
    number: int
    future: "Future[Any]"


class MeadowrunDeployer:
    """The workers of one deployment."""

    def __init__(self, name: str, settings: Settings, bridge: Bridge) -> None:
        self.name = name
        self._settings = settings
        self._bridge = bridge
        self._owner = current_owner()
        self._is_checked = False
        self._launches: dict[str, _Launch] = {}
        # Of workers that are gone, with their machines and logs.
        self._last_words: dict[str, str] = {}
        self._looked: dict[str, float] = {}

    @property
    def credentials(self) -> Credentials | None:
        """With which workers are called."""
        if self._settings.certificates is None:
            return None
        ca, cert, key = (self._settings.certificates / name for name in CLIENT_FILES)
        return Credentials("", ca, cert, key)

    @property
    def gateway_options(self) -> Sequence[str]:
        """Of `triptych serve gateway`, with which it calls the workers."""
        if self._settings.certificates is None:
            return ()
        ca, cert, key = (str((self._settings.certificates / name).absolute()) for name in CLIENT_FILES)
        return "--stage-ca", ca, "--stage-cert", cert, "--stage-key", key

    def plan(self) -> Sequence[Offer]:
        """What fits any stage, by Meadowrun's list of prices and AWS's of evictions."""
        offers = {
            (one["machine"], one["is_spot"]): one
            for needs in {self._needs(stage) for stage in STAGES}
            for one in self._ask("offers", resources=asdict(needs))
        }
        return sorted(
            (
                Offer(
                    one["machine"],
                    one["is_spot"],
                    one["price"],
                    hourly(one["eviction_percent"]),
                    one["about"]
                    + (f"; {one['eviction_percent']:.0f}% evicted a month" if one["is_spot"] else ""),
                )
                for one in offers.values()
            ),
            key=lambda offer: offer.price_per_hour,
        )

    def launch(self, stage: str) -> Worker:
        if stage not in STAGES:
            raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
        self.check_owner()
        if not self._is_checked:
            self._ask("check", ami=self._settings.ami, gpu=bool(self._needs(stage).gpus))
            self._is_checked = True
        worker = Worker(secrets.token_hex(4), stage, "", State.STARTING, "a machine of Meadowrun's choice")
        number, future = self._bridge.begin(
            "launch",
            region=self._settings.region,
            ami=self._settings.ami,
            tags={
                "deployment": self.name,
                "owner": self._owner,
                "worker": worker.id,
                "stage": stage,
                "port": str(PORT[stage]),
                "started": str(time.time_ns()),
                "state": "launching",
            },
            job=job_of(self._settings, stage, worker.id),
            resources=asdict(self._needs(stage)),
            files=files_of(self._settings, stage, worker.id),
        )
        self._launches[worker.id] = _Launch(worker, number, future)
        return worker

    def endpoints(self) -> Sequence[Worker]:
        machines = [one for one in self._machines() if "worker" in one["tags"]]
        with ThreadPoolExecutor(max(len(machines), 1)) as threads:
            found = [worker for worker in threads.map(self._describe, machines) if worker is not None]
        there = {one["tags"]["worker"] for one in machines}
        for id, launch in list(self._launches.items()):
            if not launch.future.done():
                if id not in there:
                    found.append(launch.worker)
                continue
            del self._launches[id]
            if error := launch.future.exception():
                self._last_words[id] = str(error)
                found = [worker for worker in found if worker.id != id]
        return found

    def logs(self, worker_id: str, *, num_lines: int = 50) -> str:
        for machine in self._of(worker_id):
            if job := machine["tags"].get("job"):
                return self._log(machine, job, num_lines)
        if launch := self._launches.get(worker_id):
            error = launch.future.exception() if launch.future.done() else None
            return str(error or "Meadowrun is looking for a machine, or starting it")
        if worker_id in self._last_words:
            return "\n".join(self._last_words[worker_id].splitlines()[-num_lines:])
        raise DeployError(f"there is no log of {worker_id}: no machine of '{self.name}' has that worker")

    def follow_log(self, worker_id: str, *, num_lines: int | None = 50) -> Iterator[str]:
        """Asks for the end of the log again and again: Meadowrun has no stream of it."""
        seen = self.logs(worker_id, num_lines=num_lines or MAX_FOLLOWED_LINES).splitlines()
        yield from seen
        while self._of(worker_id) or worker_id in self._launches:
            time.sleep(LOOK_EVERY_S)
            try:
                now = self.logs(worker_id, num_lines=MAX_FOLLOWED_LINES).splitlines()
            except DeployError:
                return  # it has ended
            yield from lines_after(seen, now)
            seen = now

    def check_owner(self) -> None:
        for machine in self._machines():
            self._check_owner(machine)

    def _check_owner(self, machine: Mapping[str, Any]) -> None:
        if (owner := machine["tags"].get("owner", self._owner)) != self._owner:
            raise foreign_error(self.name, owner)

    def drain(self, worker_id: str) -> None:
        """Its machine goes when it has ended; the bridge sees to that, also when this process has ended."""
        self._cancel(worker_id)
        for machine in self._of(worker_id):
            self._check_owner(machine)
            tags = machine["tags"]
            if tags.get("state") == "draining":
                continue
            if job := tags.get("job"):
                self._ask("drain", instance=machine["instance"], address=machine["address"], job=job)
            else:
                self._give_back([machine])

    def stop(self, worker_id: str) -> None:
        self.check_owner()
        self._cancel(worker_id)
        self._give_back(self._of(worker_id))

    def teardown(self) -> Leftovers:
        self.check_owner()
        for id in list(self._launches):
            self._cancel(id)
        machines = self._machines()
        left = set(self._give_back(machines))
        remaining = [one for one in machines if one["instance"] in left]
        return Leftovers(
            [f"{one['instance']} ({one['kind']})" for one in remaining], sum(map(_price, remaining))
        )

    def close(self) -> None:
        """Ends the bridge, once what drains has ended."""
        self._bridge.close(timeout_s=None)

    def cache_weights(self, stage: str, model: str, *, origin: str = "") -> None:
        """Fetches a model to a machine without a GPU and puts it into the S3 cache, and gives the machine back.

        `origin` names another place than the published one.
        """
        if "TRIPTYCH_S3_CACHE" not in self._settings.environment:
            raise DeployError("where to? name the bucket, --s3-cache s3://BUCKET/PREFIX")
        self._ask("check", ami=self._settings.ami, gpu=False)
        # Both have the machine's cache: what the first has fetched is there for the second.
        commands = [["pull", model, *(["--from", origin] if origin else [])], ["push", model]]
        try:
            for command in commands:
                self._ask(
                    "launch",
                    ami=self._settings.ami,
                    tags={
                        "deployment": self.name,
                        "owner": self._owner,
                        "weights": model,
                        "started": str(time.time_ns()),
                    },
                    job={
                        **started_from(self._settings, "weights", [*command, "--stage", stage]),
                        "ports": None,
                    },
                    resources=asdict(WITHOUT_GPU),
                    files={},
                    wait=True,
                )
        finally:
            self._give_back([one for one in self._machines() if one["tags"].get("weights") == model])

    def _describe(self, machine: Mapping[str, Any]) -> Worker | None:
        """None for a worker that has ended; its machine is given back."""
        tags, state, note = machine["tags"], State.STARTING, ""
        address = f"{machine['address']}:{tags['port']}" if machine["address"] else ""
        job = tags.get("job", "")
        if not job:
            address = ""
            if time.time() - int(tags["started"]) / 1e9 > LAUNCH_TIMEOUT_S:
                self._last_words[tags["worker"]] = "its launch was cut off"
                self._give_back([machine])
                return None
        elif not (trouble := health_error(address, self.credentials)):
            state = State.DRAINING if tags["state"] == "draining" else State.SERVING
            if tags["state"] == "started":
                self._ask("tag_machine", instance=machine["instance"], tags={"state": "serving"})
        else:
            if self._has_ended(machine, job):
                self._give_back([machine])
                return None
            if tags["state"] == "serving" and "NOT_SERVING" in trouble:
                # A notice that the machine is taken away makes a worker drain by itself.
                self._ask("tag_machine", instance=machine["instance"], tags={"state": "draining"})
                state = State.DRAINING
            elif tags["state"] == "draining":
                state = State.DRAINING
            elif tags["state"] == "serving":
                # Whether it is lost is for the gateway to say, which asks it all the time.
                state, note = State.SERVING, f"it does not answer from here: {trouble}"
        kind = f"{machine['kind']}{', spot' if machine['is_spot'] else ''}"
        return Worker(tags["worker"], tags["stage"], address, state, kind, _price(machine), note)

    def _has_ended(self, machine: Mapping[str, Any], job: str) -> bool:
        id = machine["tags"]["worker"]
        if time.monotonic() - self._looked.get(id, 0.0) < LOOK_EVERY_S:
            return False
        has_ended: bool = self._ask("look", address=machine["address"], job=job) == "ended"
        self._looked[id] = time.monotonic()
        if has_ended:
            self._last_words[id] = self._log(machine, job, 50)
        return has_ended

    def _log(self, machine: Mapping[str, Any], job: str, num_lines: int) -> str:
        asked = num_lines + CLEANUP_LINES
        text: str = self._ask("log", address=machine["address"], job=job, num_lines=asked)
        return "\n".join(_without_cleanup(text).rstrip().splitlines()[-num_lines:])

    def _machines(self) -> list[Mapping[str, Any]]:
        machines: list[Mapping[str, Any]] = self._ask("machines", deployment=self.name)
        return sorted(machines, key=lambda one: int(one["tags"].get("started", "0")))

    def _of(self, worker_id: str) -> list[Mapping[str, Any]]:
        return [one for one in self._machines() if one["tags"].get("worker") == worker_id]

    def _give_back(self, machines: Sequence[Mapping[str, Any]]) -> list[str]:
        """Those that do not end. Machines of another user stay."""
        machines = [one for one in machines if one["tags"].get("owner", self._owner) == self._owner]
        if not machines:
            return []
        left: list[str] = self._ask("give_back", instances=[one["instance"] for one in machines])
        return left

    def _cancel(self, worker_id: str) -> None:
        """Gives up a launch that is under way; Meadowrun ends the machine that it had begun."""
        launch = self._launches.pop(worker_id, None)
        if launch is not None:
            self._bridge.cancel(launch.number)
            launch.future.exception()

    def _needs(self, stage: str) -> Needs:
        return self._settings.needs.get(stage, Needs())

    def _ask(self, do: str, **arguments: Any) -> Any:
        return self._bridge.ask(do, region=self._settings.region, **arguments)


def lines_after(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """What has come to a log since its end was `before`: what stands behind the last lines that are known."""
    known = list(before[-NUM_KNOWN_LINES:])
    for end in range(len(now), len(known) - 1, -1):
        if list(now[end - len(known) : end]) == known:
            return now[end:]
    return now


def hourly(percent_a_month: float) -> float:
    """How likely a machine is taken away within an hour, from AWS's share of those taken away within a month."""
    return 1.0 - (1.0 - min(percent_a_month, 99.9) / 100.0) ** (1.0 / HOURS_IN_A_MONTH)


def bridge_of(folder: Path, tell: Callable[[str], None]) -> Bridge:
    """The real one, in Meadowrun's environment, which is made at its first use."""

    def command() -> Sequence[str]:
        from deploy.meadowrun.virtualenv import ensure_environment

        return [str(ensure_environment(tell)), "-u", str(Path(__file__).with_name("bridge") / "main.py")]

    return Bridge(command, folder / "meadowrun.log", tell)


def _without_cleanup(log: str) -> str:
    """The job's own log. Its clean-up fails where a machine does not answer IMDSv1, and logs that into the same file."""
    before, found, _ = log.partition("/deallocate_jobs.py")
    return before[: max(before.rfind("Traceback"), 0)] if found else log


def _price(machine: Mapping[str, Any]) -> float:
    return float(machine["tags"].get("price", "0"))
