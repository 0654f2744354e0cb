"""The type check that the tests run on our code: beartype's, where an int will do for a float as PEP 484 states."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
