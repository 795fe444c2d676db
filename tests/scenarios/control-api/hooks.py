"""What Schemathesis cannot know of the control API."""

import json

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, (dict, list)):
        case.body = written(case.body)
    # A stream that is followed has no end: other tests follow.
    if isinstance(case.body, dict) and case.body.get("follow") is True:
        case.body["follow"] = False


def written(value):
    """An integer is written as one: to JSON Schema `1.0` is an integer too, to the supervisor it is not."""
    if isinstance(value, dict):
        return {key: written(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [written(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@schemathesis.deserializer("application/x-ndjson")
def lines(context, response):
    return [json.loads(line) for line in response.content.decode().splitlines()]
