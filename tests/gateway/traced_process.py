"""Runs a module as a process whose spans stay in its memory, and writes them into a file when it ends.

python -m tests.gateway.traced_process SPANS PYTHON -m MODULE ARGUMENTS...
"""

import json
import os
import runpy
import sys
from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.serving.tracing import setup

if __name__ == "__main__":
    path, _python, _option, module = sys.argv[1:5]
    exporter = InMemorySpanExporter()
    os.environ["OTEL_TRACES_EXPORTER"] = "memory"
    setup._make_exporter = lambda: exporter
    sys.argv = [module, *sys.argv[5:]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
        Path(path).write_text(json.dumps(spans))
