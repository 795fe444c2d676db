"""psycopg, on libpq as it is: it knows of no gate, has no password, and verifies whom it speaks with."""

import asyncio

import psycopg
from psycopg import errors

from checks import check, must_fail

# User and database are the grant's, whatever stands here.
READER = "host=reader.clients.example user=whoever dbname=whatever connect_timeout=10 sslmode=verify-full"
WRITER = READER.replace("reader", "writer")
VERSION = psycopg.__version__


@check("psycopg", VERSION)
def psycopg_reads():
    with psycopg.connect(READER) as connection:
        assert connection.info.user == "whoever", "that is for libpq to say"
        assert connection.pgconn.ssl_in_use
        who = connection.execute("select current_user, current_database()").fetchone()
        assert who == ("reader", "sales"), who
        rows = connection.execute("select id, name from items where id > %s order by id", (0,), binary=True).fetchall()
        assert rows == [(1, "one"), (2, "two")], rows
        with connection.cursor("on_the_server") as cursor:
            cursor.itersize = 100
            cursor.execute("select generate_series(1, 1000)")
            assert sum(row[0] for row in cursor) == 500500


@check("psycopg", VERSION)
def psycopg_write_denied():
    with psycopg.connect(READER, autocommit=True) as connection:
        said = must_fail(errors.InsufficientPrivilege, lambda: connection.execute("delete from items"))
        must_fail(errors.InsufficientPrivilege, lambda: connection.execute("delete from items where id = %s", (1,)))
        must_fail(errors.InsufficientPrivilege, lambda: connection.execute("select pg_read_file('/etc/passwd')"))
        must_fail(errors.InsufficientPrivilege, lambda: connection.execute("copy items to program 'id'"))
        must_fail(errors.InsufficientPrivilege, lambda: connection.execute("set role postgres"))
        assert connection.execute("select count(*) from items").fetchone() == (2,), "the session goes on"
    return said


@check("psycopg", VERSION)
def psycopg_denied_in_a_transaction():
    with psycopg.connect(READER) as connection:
        must_fail(errors.InsufficientPrivilege, lambda: connection.execute("insert into items values (9, 'nine')"))
        must_fail(errors.InFailedSqlTransaction, lambda: connection.execute("select 1"))
        connection.rollback()
        assert connection.execute("select 1").fetchone() == (1,)


@check("psycopg", VERSION)
def psycopg_writes():
    with psycopg.connect(WRITER) as connection:
        with connection.cursor() as cursor:
            cursor.executemany("insert into notes values (%s, %s)", [(n, f"note {n}") for n in range(100)])
            with cursor.copy("copy notes from stdin") as copy:
                for n in range(100, 200):
                    copy.write_row((n, "it's a 'note'"))
            with cursor.copy("copy notes to stdout") as copy:
                assert sum(1 for _ in copy.rows()) == 200
        with connection.transaction(force_rollback=True):
            connection.execute("truncate notes")
        assert connection.execute("select count(*) from notes").fetchone() == (200,)
        connection.commit()
        must_fail(errors.InsufficientPrivilege, lambda: connection.execute("drop table notes"))
        connection.rollback()


@check("psycopg", VERSION)
def psycopg_pipeline():
    with psycopg.connect(READER, autocommit=True) as connection:
        with connection.pipeline():
            results = [connection.execute("select %s::int", (n,)) for n in range(50)]
        assert [result.fetchone()[0] for result in results] == list(range(50))

        def some_denied():
            with connection.pipeline():
                connection.execute("select 1")
                connection.execute("delete from items")
                connection.execute("select 2")

        said = must_fail(errors.InsufficientPrivilege, some_denied)
        assert connection.execute("select 3").fetchone() == (3,)
    return said


@check("psycopg", VERSION)
def psycopg_async_and_cancel():
    async def run():
        async with await psycopg.AsyncConnection.connect(READER, autocommit=True) as connection:
            rows = await (await connection.execute("select name from items order by id")).fetchall()
            assert rows == [("one",), ("two",)], rows
            slow = asyncio.create_task(connection.execute("select count(*) from generate_series(1, 10000000000)"))
            await asyncio.sleep(0.5)
            await connection.cancel_safe(timeout=10)
            try:
                await slow
            except errors.QueryCanceled as error:
                return str(error)
            raise AssertionError("it was not cancelled")

    return asyncio.run(run())


@check("psycopg", VERSION)
def psycopg_host_denied():
    # A host that no grant names, and a granted one at another port.
    must_fail(psycopg.OperationalError, lambda: psycopg.connect(READER.replace("reader", "other")))
    return must_fail(psycopg.OperationalError, lambda: psycopg.connect(READER + " port=5433"))
