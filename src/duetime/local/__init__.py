"""The embedded PostgreSQL: started on demand, shared by processes, stopped by the last of them to leave."""

from .database import LocalDatabase as LocalDatabase
