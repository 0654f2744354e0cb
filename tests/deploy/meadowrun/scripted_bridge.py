"""Stands where the bridge to Meadowrun does: speaks its JSON lines, and answers what a file states.

The file has, for each question's name, {"done"} or {"failed"}, with {"said"} to say first; {"with": name} is answered only
after the next question of that name; "never" when it is cancelled; "dies" ends the process. Questions are kept in another file.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(script: Path, asked: Path) -> None:
    answers = json.loads(script.read_text())
    held: dict[str, list[dict[str, Any]]] = {}
    answer({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        with asked.open("a") as file:
            file.write(json.dumps({"do": question["do"], **question["with"]}) + "\n")
        scripted = answers.get(question["do"], {"done": []})
        if question["do"] == "cancel":
            answer({"id": question["with"]["question"], "failed": "it was given up"})
        if scripted == "dies":
            sys.exit("Meadowrun has had enough")
        if scripted == "never":
            continue
        reply = {"id": question["id"], **scripted}
        if "said" in reply:
            answer({"id": question["id"], "said": reply.pop("said")})
        if after := reply.pop("with", ""):
            held.setdefault(after, []).append(reply)
            continue
        answer(reply)
        for late in held.pop(question["do"], []):
            answer(late)


def answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
