"""`python -m triptych` is the command `triptych`: the child processes are started by this name."""

from triptych.cli.main import main

main()
