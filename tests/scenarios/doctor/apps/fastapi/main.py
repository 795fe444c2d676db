"""An API whose first page needs a table that nobody made."""

import sqlite3

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
def balances():
    return sqlite3.connect(":memory:").execute("SELECT * FROM balances").fetchall()
