"""The store: tables, statements and the data store that keeps APScheduler's contract on them."""

from .postgres import PostgresDataStore
from .transactions import scheduler_transaction

__all__ = ["PostgresDataStore", "scheduler_transaction"]
