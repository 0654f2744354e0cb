"""Models as they were published, with random weights: real file formats, real names, real shapes or smaller ones.

`layouts.py` says which files a model has; `flax.py` and `pytorch.py` write them; `metered.py` runs a command and says
what it took. `real_size.py` is `make test-real-size`.
"""
