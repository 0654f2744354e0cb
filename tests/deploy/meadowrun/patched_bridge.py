"""The bridge as the tests run it: all of Meadowrun, but for the outside world.

Prices come from a list, this machine's address is made up, and every EC2 machine is the sshd of the tests, each at a
loopback address of its own: ec2-54-214-1-2...amazonaws.com is 127.214.1.2. A machine that is ended takes its processes along.
"""

import asyncio
import getpass
import json
import os
import re
import sys
from contextlib import suppress

SETTINGS = json.loads(os.environ["PATCHED_BRIDGE"])
sys.path.insert(0, SETTINGS["folder"])

import asyncssh  # noqa: E402 - of Meadowrun's environment, as all below
import boto3  # noqa: E402
import ec2 as machines  # noqa: E402
import main as bridge  # noqa: E402
import meadowrun.ssh  # noqa: E402
import psutil  # noqa: E402
from meadowrun.aws_integration import aws_install_uninstall, ec2, ec2_pricing  # noqa: E402
from meadowrun.instance_selection import CloudInstanceType  # noqa: E402


def loopback(address):
    found = re.match(r"ec2-\d+-(\d+)-(\d+)-(\d+)\.", address)
    return f"127.{found[1]}.{found[2]}.{found[3]}" if found else address


async def prices(region_name):
    return [CloudInstanceType.from_dict(one) for one in SETTINGS["prices"]]


async def my_address():
    return "192.0.2.7"


async def connect(host, username, private_key):
    return await asyncssh.connect(
        loopback(host),
        SETTINGS["port"],
        username=getpass.getuser(),
        client_keys=[private_key],
        known_hosts=None,
        config=None,
    )


def end_processes(address):
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            session = process.environ().get("SSH_CONNECTION", "").split()
            if len(session) == 4 and session[2] == address and process.pid != os.getpid():
                process.kill()


def end_machines(params, **_):
    # Asked before they end: then they have no address any more.
    found = machines.described(
        boto3.client("ec2"), [{"Name": "instance-id", "Values": list(params["InstanceIds"])}]
    )
    for one in found:
        end_processes(machines.address_of(one))


def prepare_session(prepare=machines.prepare_session):
    prepare()
    boto3.DEFAULT_SESSION.events.register("provide-client-params.ec2.TerminateInstances", end_machines)


def address_of(instance, named=machines.address_of):
    return loopback(named(instance))


meadowrun.ssh.connect = connect
ec2_pricing._get_ec2_instance_types = ec2._get_ec2_instance_types = prices
ec2._get_current_ip_for_ssh = aws_install_uninstall._get_current_ip_for_ssh = my_address
machines.address_of = address_of
machines.prepare_session = prepare_session

asyncio.run(bridge.main())
