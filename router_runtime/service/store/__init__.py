"""Where decisions, attempts, spend, keys and feedback are kept: SQLite or PostgreSQL.

``writer.Store`` takes what happened, ``spool`` keeps it until the database has it, ``events`` says
how it is written down, ``tables`` and ``migrations`` what the database looks like, ``engine`` opens
it, and ``queries`` asks.
"""

from router_runtime.service.store.writer import Store, StoreStatus, open_store

__all__ = ["Store", "StoreStatus", "open_store"]
