"""Calls a method that the library no longer has; what it pins beside it tells of which time it is."""

import tinydb
from tinydb.storages import MemoryStorage

db = tinydb.TinyDB(storage=MemoryStorage)
db.insert({"answer": 42})
db.purge()
print(len(db))
