"""Models as they were published, with random weights: real file formats, real names, real shapes or smaller ones.

`layouts.py` lists the files of a model; `flax.py` and `pytorch.py` write them; `metered.py` runs a command and prints
what it took. `real_size.py` is `make test-real-size`.
"""
