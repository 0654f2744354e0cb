"""Meadowrun itself, in its own environment, on a cloud that moto plays and machines that are an sshd of this one.

Only prices, this machine's address and where ssh goes are made up (patched_bridge.py).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import deploy.meadowrun.command as meadowrun_command
from deploy.command import deploy
from deploy.deployer import DeployError, State
from deploy.deployment import Deployment
from deploy.meadowrun.bridge_client import Bridge
from deploy.meadowrun.deployer import MeadowrunDeployer
from deploy.meadowrun.jobs import Needs
from services.weights.catalog import known_model
from tests.deploy.meadowrun.cloud import REGION, Cloud
from tests.services.serving.test_spot_notices import NOTICE, Metadata
from triptych.blocking import Client
from triptych.spec import make_spec

pytestmark = [pytest.mark.meadowrun, pytest.mark.timeout(600)]

BRIDGE = Path(__file__).parents[3] / "deploy" / "meadowrun" / "bridge" / "main.py"
NETWORK = Path(__file__).parents[2] / "golden" / "upscaler" / "nearest3conv_x4.safetensors"

Make = Callable[..., MeadowrunDeployer]


@pytest.fixture
def make(cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes deployers; what they started is gone in the end."""
    made: list[MeadowrunDeployer] = []

    def make_one(**settings: object) -> MeadowrunDeployer:
        made.append(cloud.deployer(request.node.name.removeprefix("test_")[:60], **settings))
        return made[-1]

    yield make_one
    for deployer in made:
        deployer.teardown()
        deployer.close()


def tags_of(machine: dict[str, Any]) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in machine["Tags"]}


def test_a_worker_gets_the_cheapest_spot_machine_that_has_the_gpu(cloud: Cloud, make: Make, tmp_path: Path):
    deployer = make()

    (worker,) = Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 1})

    (machine,) = cloud.instances(deployer.name)
    assert (machine["InstanceType"], machine["InstanceLifecycle"]) == ("g4dn.xlarge", "spot")
    assert (worker.machine, worker.price_per_hour) == ("g4dn.xlarge, spot", 0.1578)
    # One for ssh, one that all machines with these ports share.
    groups = {one["GroupName"]: one["GroupId"] for one in machine["SecurityGroups"]}
    assert groups.keys() == {"meadowrun_ssh_security_group", "meadowrun50051-50053"}
    (found,) = cloud.client("ec2").describe_security_groups(GroupIds=[groups["meadowrun50051-50053"]])[
        "SecurityGroups"
    ]
    open_to = [rule for rule in found["IpPermissions"] if rule["FromPort"] == 50051]
    assert {one["CidrIp"] for rule in open_to for one in rule["IpRanges"]} == {"192.0.2.7/32"}
    assert {one["GroupId"] for rule in open_to for one in rule["UserIdGroupPairs"]} == {found["GroupId"]}
    # A container is one hop further from the metadata service than AWS expects.
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 2


def test_a_gpu_is_taken_by_one_worker_alone(cloud: Cloud, make: Make, tmp_path: Path):
    deployer = make()
    Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 2})
    first, second = cloud.instances(deployer.name)
    assert first["InstanceId"] != second["InstanceId"]
    items = cloud.client("dynamodb").scan(TableName="meadowrun_ec2_alloc_table")["Items"]
    free = {one["instance_id"]["S"]: one["resources_available"]["M"] for one in items}
    for machine in (first, second):
        assert float(free[machine["InstanceId"]]["gpu"]["N"]) == 0


def test_who_wants_no_evictions_gets_no_spot_machine(cloud: Cloud, make: Make, tmp_path: Path):
    needs = Needs(gpus=None, gpu_memory=None, flags=None, max_eviction_rate=0)
    deployer = make(needs={"upscaler": needs})
    Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 1})
    (machine,) = cloud.instances(deployer.name)
    assert machine["InstanceType"] == "m5.xlarge"
    assert "InstanceLifecycle" not in machine


def test_a_plan_has_prices_and_evictions_of_machines_that_fit(make: Make):
    offers = [(one.machine, one.is_spot, one.price_per_hour, one.evictions_per_hour) for one in make().plan()]
    assert offers == [
        ("g4dn.xlarge", True, 0.1578, pytest.approx(0.0001068, rel=1e-3)),
        ("g4dn.xlarge", False, 0.526, 0.0),
        # g5.xlarge as a spot machine is taken away too often.
        ("g5.xlarge", False, 1.006, 0.0),
    ]


def test_a_worker_that_hears_a_spot_notice_drains_and_is_replaced(cloud: Cloud, make: Make, tmp_path: Path):
    lines: list[str] = []
    with Metadata().serving() as metadata:
        deployer = make(spot_notices=metadata.address)
        deployment = Deployment(deployer, tmp_path / "workers.json", lines.append)
        (first,) = deployment.scale({"upscaler": 1})
        metadata.body = json.dumps(NOTICE).encode()

        class Replaced(Exception):
            pass

        def rest() -> None:
            # The notice is this one machine's.
            if any("is gone or drains" in line for line in lines):
                metadata.body = None
            serving = [one for one in deployer.endpoints() if one.state is State.SERVING]
            if serving and serving[0].id != first.id:
                raise Replaced
            deployment.sleep(0.5)

        with pytest.raises(Replaced):
            deployment.keep(rest)
    (second,) = cloud.instances(deployer.name)
    assert f"upscaler {first.id} is gone or drains" in lines
    assert tags_of(second)["triptych:worker"] != first.id
    assert json.loads((tmp_path / "workers.json").read_text())["upscaler"] != [first.address]


def test_a_machine_goes_when_its_worker_has_drained_though_nobody_waits(
    cloud: Cloud, make: Make, tmp_path: Path
):
    deployer = make()
    (worker,) = Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 1})
    deployer.drain(worker.id)
    deployer.close()
    assert not cloud.instances(deployer.name)


def test_a_launch_that_is_given_up_leaves_no_machine(cloud: Cloud, make: Make):
    deployer = make()
    worker = deployer.launch("upscaler")
    assert [one.id for one in deployer.endpoints()] == [worker.id]
    deployer.stop(worker.id)
    assert not deployer.endpoints()
    deployer.close()
    assert not cloud.instances(deployer.name)


def test_a_pipeline_on_ec2_makes_a_picture_and_is_taken_down(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(meadowrun_command, "bridge_of", lambda folder, tell: cloud.bridge())
    place = ["meadowrun", "--name", "pipeline", "--region", REGION, "--ami", cloud.ami, "--insecure"]

    def triptych(*arguments: str) -> str:
        done = CliRunner().invoke(deploy, [*place, "--interpreter", str(cloud.interpreter), *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "g4dn.xlarge" in triptych("plan")
    try:
        said = triptych("up", "--port", "0", "--http-port", "0")
        address = said.rpartition("gateway serves at ")[2].partition(",")[0]
        with Client(address) as client:
            made = client.run(make_spec("a red house", candidates=1, variations=1, seed=7)).result()
        assert [picture.stage for picture in made.pictures] == ["generate", "refine", "upscale"]
        stages = [tags["triptych:stage"] for tags in map(tags_of, cloud.instances("pipeline"))]
        assert sorted(stages) == ["generator", "refiner", "upscaler"]
        assert triptych("status").splitlines()[-1] == "all workers cost 0.4734 an hour"
        worker = triptych("status").split()[1]
        assert "serving generator 'counting'" in triptych("logs", worker)
    finally:
        assert "nothing is left" in triptych("down")
    assert not cloud.instances("pipeline")


def test_weights_are_cached_from_a_machine_without_a_gpu(cloud: Cloud, make: Make, tmp_path: Path):
    # The file as it is published, with a small network.
    _, _, name = known_model("real-l", "upscaler").sources[0].location.rpartition("/")
    torch.save({"params_ema": load_file(NETWORK)}, tmp_path / name)
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION})
    cloud.bridge().ask("grant", region=REGION, bucket="models")
    deployer = make(environment={"TRIPTYCH_S3_CACHE": "s3://models/all"})

    deployer.cache_weights("upscaler", "real-l", origin=str(tmp_path))

    there = {one["Key"] for one in s3.list_objects_v2(Bucket="models")["Contents"]}
    assert {"all/upscaler/real-l/manifest.json", "all/upscaler/real-l/swinir/model.safetensors"} < there
    found = cloud.client("ec2").describe_instances(
        Filters=[{"Name": "tag:triptych:weights", "Values": ["real-l"]}]
    )
    # One for both, pull and push: they share its cache.
    (machine,) = [one for reservation in found["Reservations"] for one in reservation["Instances"]]
    assert machine["InstanceType"] == "m5.xlarge"
    assert machine["State"]["Name"] == "terminated"


def test_granting_lets_machines_read_and_write_one_bucket(cloud: Cloud):
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="granted", CreateBucketConfiguration={"LocationConstraint": REGION})
    bridge = cloud.bridge()
    bridge.ask("grant", region=REGION, bucket="granted")
    policy = cloud.client("iam").get_role_policy(
        RoleName="meadowrun_ec2_role", PolicyName="AccessS3Bucket_granted"
    )
    resources = {one["Resource"] for one in policy["PolicyDocument"]["Statement"]}
    assert resources == {"arn:aws:s3:::granted", "arn:aws:s3:::granted/*"}
    with pytest.raises(DeployError, match="404"):
        bridge.ask("grant", region=REGION, bucket="there-is-none")


def test_idle_machines_are_ended_by_functions_in_a_python_that_there_is(cloud: Cloud):
    functions = cloud.client("lambda").list_functions()["Functions"]
    assert len(functions) == 2
    assert {one["Runtime"] for one in functions} == {"python3.13"}


def test_users_may_set_the_tags_that_everything_is_found_by(cloud: Cloud):
    policy = cloud.client("iam").get_group_policy(GroupName="meadowrun_user_group", PolicyName="triptych")
    assert "ec2:CreateTags" in policy["PolicyDocument"]["Statement"][0]["Action"]


def test_images_that_are_gone_are_reported_before_anything_is_launched(cloud: Cloud, make: Make):
    deployer = make(ami="")
    with pytest.raises(
        DeployError, match=r"Meadowrun's image ami-\w+ is not there in us-east-2 any more: .*--ami"
    ):
        deployer.launch("upscaler")
    assert not cloud.instances(deployer.name)


def test_a_region_without_meadowrun_explains_how_to_install_it(cloud: Cloud):
    with pytest.raises(DeployError, match="not installed in eu-west-1: `triptych deploy meadowrun install`"):
        cloud.bridge().ask("check", region="eu-west-1", ami=cloud.ami, gpu=True)


def test_without_credentials_the_bridge_explains_what_to_set(cloud: Cloud, tmp_path: Path):
    settings = [f"HOME={tmp_path}", "AWS_EC2_METADATA_DISABLED=true", str(cloud.python), str(BRIDGE)]
    # Nothing of what it would find here.
    bridge = Bridge(lambda: ["env", "-i", *settings], tmp_path / "bridge.log")
    try:
        with pytest.raises(DeployError, match="no AWS credentials were found: set AWS_PROFILE"):
            bridge.ask("machines", region=REGION, deployment="any")
    finally:
        bridge.close(timeout_s=60)


def test_cleaning_up_ends_machines_that_do_nothing_and_no_others(cloud: Cloud, make: Make, tmp_path: Path):
    deployer = make()
    Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 1})
    cloud.bridge().ask("clean", region=REGION, active=False)
    assert len(cloud.instances(deployer.name)) == 1
    cloud.bridge().ask("clean", region=REGION, active=True)
    assert not cloud.instances(deployer.name)
