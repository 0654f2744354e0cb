"""Build hook of both wheels: copies files of the tree to other paths inside a wheel.

The table `files` of the hook's section maps paths of the tree, relative to the pyproject, to paths in the wheel. An editable
installation has none of them: the tree itself is on the import path there.
"""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelFiles(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for source, target in self.config["files"].items():
            build_data["force_include"][os.path.join(self.root, source)] = target
