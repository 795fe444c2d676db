"""A package without a wheel: it is built with a compiler, headers and a program of a Debian package, and loads a system's library."""

import os

import psycopg2

psycopg2.connect(os.environ["DATABASE_URL"])
