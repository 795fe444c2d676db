"""Calls a method that the library no longer has; a lock of another tool has the release that had it."""

import tinydb
from tinydb.storages import MemoryStorage

db = tinydb.TinyDB(storage=MemoryStorage)
db.insert({"answer": 42})
db.purge()
print(len(db))
