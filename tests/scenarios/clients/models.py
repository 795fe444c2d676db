"""Libraries of providers of language models."""

import asyncio
import json
import os

import anthropic
import openai

from checks import check, must_fail

# More than the budget has.
TOO_LONG = "word " * 100_000

GPT = "gpt-4o-mini"
GPT_TOOL = {
    "type": "function",
    "function": {
        "name": "analyse_csv",
        "description": "Adds up a table.",
        "parameters": {"type": "object", "properties": {"question": {"type": "string"}}},
    },
}


def asked(question):
    return [{"role": "user", "content": question}]


def gpt(**more):
    return {"model": GPT, "messages": asked("How did the regions do?"), "tools": [GPT_TOOL], **more}


@check("openai", openai.__version__)
def openai_sync_tools():
    client = openai.OpenAI()
    message = client.chat.completions.create(**gpt()).choices[0].message
    tool = message.tool_calls[0]
    assert tool.function.name == "analyse_csv" and json.loads(tool.function.arguments)["aggregation"] == "sum"
    result = {"role": "tool", "tool_call_id": tool.id, "content": "region,revenue\nEast,10\nWest,7\n"}
    messages = [*asked("How did the regions do?"), message, result]
    answer = client.chat.completions.create(**gpt(messages=messages))
    assert answer.choices[0].message.content and answer.usage.total_tokens > 0, answer


@check("openai", openai.__version__)
def openai_sync_stream():
    stream = openai.OpenAI().chat.completions.create(**gpt(stream=True, stream_options={"include_usage": True}))
    chunks = list(stream)
    arguments = "".join(
        call.function.arguments for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []
    )
    assert json.loads(arguments) and chunks[-1].usage.total_tokens > 0, chunks


@check("openai", openai.__version__)
def openai_async():
    async def ask():
        async with openai.AsyncOpenAI() as client:
            whole = await client.chat.completions.create(**gpt())
            assert whole.choices[0].finish_reason == "tool_calls"
            stream = await client.chat.completions.create(**gpt(stream=True))
            assert len([chunk async for chunk in stream]) > 3

    asyncio.run(ask())


@check("openai", openai.__version__)
def openai_key_is_a_placeholder():
    assert "clients-secret" not in "".join(os.environ.values())


@check("openai", openai.__version__)
def openai_model_denied():
    ask = openai.OpenAI().chat.completions.create
    return must_fail(openai.PermissionDeniedError, lambda: ask(**gpt(model="gpt-4o")))


@check("openai", openai.__version__)
def openai_path_denied():
    return must_fail(openai.PermissionDeniedError, lambda: openai.OpenAI().models.list())


@check("openai", openai.__version__)
def openai_budget_denied():
    ask = openai.OpenAI().chat.completions.create
    return must_fail(openai.RateLimitError, lambda: ask(**gpt(messages=asked(TOO_LONG))))


CLAUDE = "claude-haiku-4-5"
CLAUDE_TOOL = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def claude(**more):
    return {"model": CLAUDE, "max_tokens": 200, "messages": asked("What is it like?"), **more}


@check("anthropic", anthropic.__version__)
def anthropic_sync_tools():
    client = anthropic.Anthropic()
    message = client.messages.create(**claude(tools=[CLAUDE_TOOL]))
    tool = message.content[0]
    assert (message.stop_reason, tool.name, tool.input) == ("tool_use", "weather", {"city": "Bern"})
    result = {"type": "tool_result", "tool_use_id": tool.id, "content": "rain"}
    messages = [
        *asked("What is it like?"),
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    answer = client.messages.create(**claude(tools=[CLAUDE_TOOL], messages=messages))
    assert answer.content[0].text == "The tool says: rain", answer


@check("anthropic", anthropic.__version__)
def anthropic_sync_stream():
    with anthropic.Anthropic().messages.stream(**claude()) as stream:
        assert "".join(stream.text_stream) == "Three short words."
        assert stream.get_final_message().usage.output_tokens > 0


@check("anthropic", anthropic.__version__)
def anthropic_async():
    async def ask():
        async with anthropic.AsyncAnthropic() as client:
            assert (await client.messages.create(**claude())).content[0].text == "Three short words."
            async with client.messages.stream(**claude(tools=[CLAUDE_TOOL])) as stream:
                assert (await stream.get_final_message()).content[0].input == {"city": "Bern"}

    asyncio.run(ask())


@check("anthropic", anthropic.__version__)
def anthropic_model_denied():
    ask = anthropic.Anthropic().messages.create
    return must_fail(anthropic.PermissionDeniedError, lambda: ask(**claude(model="claude-opus-4-5")))


@check("anthropic", anthropic.__version__)
def anthropic_path_denied():
    return must_fail(anthropic.PermissionDeniedError, lambda: anthropic.Anthropic().models.list())


@check("anthropic", anthropic.__version__)
def anthropic_budget_denied():
    ask = anthropic.Anthropic().messages.create
    return must_fail(anthropic.RateLimitError, lambda: ask(**claude(messages=asked(TOO_LONG))))
