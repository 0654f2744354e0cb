"""Alembic's environment of the journal: it runs inside the transaction of gateway/journal/migration.py.

`alembic` on the command line is not used on journals: a gateway migrates its journal when it opens it.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
