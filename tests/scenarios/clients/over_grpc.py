"""gRPC: calls of all four kinds."""

import queue

import grpc

from checks import check, must_fail


def call(kind, method):
    channel = grpc.secure_channel("grpc.clients.example:443", grpc.ssl_channel_credentials())
    return getattr(channel, kind)(f"/fence.Numbers/{method}")


@check("grpcio", grpc.__version__)
def grpc_unary():
    assert call("unary_unary", "Double")(b"ab", timeout=10) == b"abab"
    big = b"x" * 1_000_000
    assert call("unary_unary", "Double")(big, timeout=10) == big * 2


@check("grpcio", grpc.__version__)
def grpc_streams():
    assert list(call("unary_stream", "Count")(b"50", timeout=10)) == [b"%d" % n for n in range(50)]
    assert call("stream_unary", "Add")((b"%d" % n for n in range(50)), timeout=10) == b"1225"


@check("grpcio", grpc.__version__)
def grpc_both_ways():
    heard = queue.Queue()

    def words():
        # Each word waits for the echo of the one before: neither way may be held back.
        yield b"0"
        for _ in range(4):
            yield b"%d" % (int(heard.get(timeout=5)) + 1)

    answers = []
    for answer in call("stream_stream", "Echo")(words(), timeout=10):
        answers.append(answer)
        heard.put(answer)
    assert answers == [b"%d" % n for n in range(5)]


@check("grpcio", grpc.__version__)
def grpc_status_of_the_server():
    try:
        call("unary_unary", "Fail")(b"", timeout=10)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        assert error.details() == "there is no such number", error
    else:
        raise AssertionError("it did not fail")


@check("grpcio", grpc.__version__)
def grpc_denied():
    try:
        call("unary_unary", "Secret")(b"", timeout=10)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
        return f"{error.code()}: {error.details()}"
    raise AssertionError("it was let through")
