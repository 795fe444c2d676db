import json


def read():
    try:
        return json.loads("{")
    except ValueError as error:
        raise RuntimeError("the ledger is unreadable\nline two\n\nline four") from error


read()
