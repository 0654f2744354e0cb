"""Benchmarks: how fast the stages are beside the programs that people use today, and beside serving one at a time.

Each is a module to run: `python -m tests.bench.generator`, `.refiner`, `.upscaler`, `.engine`; `make bench` runs all in
short, `make bench-full` at length. tests/bench/NOTES.md has the results.
"""
