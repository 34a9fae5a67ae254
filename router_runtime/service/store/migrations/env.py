"""Run by Alembic: revisions over the connection that ``engine.upgrade`` has opened and locked."""

from __future__ import annotations

from alembic import context

from router_runtime.service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
