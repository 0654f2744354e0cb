"""Checks on a GPU: `make test-gpu`, or `python -m tests.gpu [--only WORD ...]`.

With `--device cpu --tiny` the same checks run on a CPU with smaller networks, so that a GPU's minutes are not spent on
mistakes of the checks themselves. Needs no network. A check that fails does not keep the others from running.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable

from tests.gpu import checks
from tests.gpu.checks import Settings

# The most important ones first.
CHECKS: dict[str, Callable[[Settings], str]] = {
    "golden": checks.golden_vectors,
    "seeds": checks.seeds_and_batches,
    "cancel": checks.cancellation,
    "memory": checks.out_of_memory,
    "up": checks.three_stages_and_a_run,
    "real-size": checks.three_stages_of_real_size,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="smaller networks, and nothing of real size")
    parser.add_argument("--only", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    options = parser.parse_args()
    if options.device == "cuda" and (missing := checks.missing_gpu()):
        print(f"SKIPPED: {missing}; on a CPU: python -m tests.gpu --device cpu --tiny")
        return
    settings = Settings(options.device, options.tiny)
    failed = []
    for name in options.only:
        started_at = time.monotonic()
        try:
            found = CHECKS[name](settings)
        except Exception:  # noqa: BLE001 - the other checks are worth their time
            traceback.print_exc()
            failed.append(name)
            found = "FAILED"
        print(f"{name}: {found} ({time.monotonic() - started_at:.0f} s)", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
