"""What kustomize makes of an overlay, as far as ours use it: resources, images, and strategic merge patches.

Patches that name nothing raise, as kustomize does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

# What the items of a list are distinguished by; every other list is replaced as a whole.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}
KNOWN_FIELDS = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}


# With libyaml it takes a tenth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_documents(text: str) -> Iterator[Document]:
    return yaml.load_all(text, LOADER)


def read_documents(path: Path) -> list[Document]:
    return [document for document in parse_documents(path.read_text()) if document]


def build(folder: Path) -> list[Document]:
    """The documents of an overlay, or of a base."""
    [asked] = read_documents(folder / "kustomization.yaml")
    unknown = set(asked) - KNOWN_FIELDS
    if unknown:
        raise ValueError(f"{folder}: this reader does not know {unknown}")
    documents: list[Document] = []
    for resource in asked["resources"]:
        path = folder / resource
        documents += build(path) if path.is_dir() else read_documents(path)
    for patch in asked.get("patches", ()):
        for part in read_documents(folder / patch["path"]):
            _patch(documents, part)
    for image in asked.get("images", ()):
        _rename(documents, image)
    for document in documents:
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = asked["namespace"]
    return documents


def key_of(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def containers_of(document: Document) -> list[Document]:
    """All of a Deployment's pod, those that run before it included."""
    pod = document["spec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _patch(documents: list[Document], part: Document) -> None:
    for place, document in enumerate(documents):
        if key_of(document) == key_of(part):
            documents[place] = _merge(document, part)
            return
    raise LookupError(f"a patch names {key_of(part)}, and there is none")


def _merge(old: Any, new: Any, field: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        merged = {
            name: _merge(old[name], value, name) if name in old else value for name, value in new.items()
        }
        return old | merged
    if isinstance(old, list) and (key := MERGE_KEYS.get(field)):
        # The patch's come first, in its order.
        kept = {item[key]: item for item in old}
        patched = [_merge(kept.pop(item[key]), item) if item[key] in kept else item for item in new]
        return patched + list(kept.values())
    return new


def _rename(documents: list[Document], image: Document) -> None:
    found = [
        container
        for document in documents
        if document["kind"] == "Deployment"
        for container in containers_of(document)
        if container["image"] == image["name"]
    ]
    if not found:
        raise LookupError(f"no container has the image {image['name']}")
    for container in found:
        container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
