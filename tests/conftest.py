"""What holds for all tests: nothing is kept in the folders of whoever runs them."""

import os

# Gateways that tests start as processes keep their runs only where a test says so.
os.environ["TRIPTYCH_JOURNAL"] = "none"
