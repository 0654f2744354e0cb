"""Owner of a deployment: who created it, and the refusal to change what another user created.

Targets keep the owner where they keep the tag: in the environment of a process, as a label of a container, as a tag of
a machine. It prevents accidents among users who share a target; who can reach the target can still act outside of Triptych.
"""

import getpass
import os
import re
import socket

from deploy.deployer import DeployError

# Set it where the host's name changes, as in a container, or to act for another user.
VARIABLE = "TRIPTYCH_DEPLOY_OWNER"
# Part of labels, tags and shell scripts.
OWNER = re.compile(r"[A-Za-z0-9._@+-]{1,128}")


def current_owner() -> str:
    """Who is asking: TRIPTYCH_DEPLOY_OWNER, or USER@HOST. Raises DeployError for a name that no target can keep."""
    owner = os.environ.get(VARIABLE) or f"{getpass.getuser()}@{socket.gethostname()}"
    if not OWNER.fullmatch(owner):
        raise DeployError(
            f"expected 1 to 128 letters, digits and '.', '_', '-', '+', '@' as the owner of a deployment, got {owner!r}; "
            f"set {VARIABLE}"
        )
    return owner


def foreign_error(name: str, owner: str) -> DeployError:
    """The error for a deployment of another user."""
    return DeployError(
        f"the deployment '{name}' belongs to {owner}, and you are {current_owner()}: choose another --name. If it is yours, "
        f"set {VARIABLE}={owner}"
    )
