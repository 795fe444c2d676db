"""A chat that cannot begin, for lack of a file."""

import chainlit as cl


@cl.on_chat_start
async def begin():
    with open("prompts/system.txt") as file:
        await cl.Message(content=file.read()).send()


@cl.on_message
async def answer(message):
    await cl.Message(content="heard").send()
