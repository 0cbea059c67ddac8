"""Records that last: what language engines answered, and every signal, order and fill.

SQLite in a file, or PostgreSQL (also Supabase) by URL; the same tables, the same tests. ``records``
are the rows, ``protocol`` what a store does, ``recorder`` writes from places that must never wait.
"""

from qbtc.store.opening import database_url, open_store
from qbtc.store.protocol import Store

__all__ = ["Store", "database_url", "open_store"]
