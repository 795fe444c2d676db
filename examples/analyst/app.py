"""Chat with the sales data: `streamlit run app.py`."""

import json

import altair as alt
import streamlit as st
from openai import OpenAI, OpenAIError

import tools

MODEL = "gpt-4o-mini"
MAX_ROUNDS = 8
SYSTEM = f"""You are a sales analyst at Acme. You answer questions about the company's sales in short, plain sentences.
The sales table has the columns {", ".join(tools.sales().columns)}.
Use the tools for every number; never guess one. Reports of the branches are at https://reports.acme.example/."""

st.set_page_config(page_title="Analyst", page_icon="📈")
st.title("📈 Analyst")
st.caption("Ask about the sales of 2025, or give me a page to read.")

# What the model is sent, in its own format; charts are kept beside it, by their place in the list.
messages = st.session_state.setdefault("messages", [{"role": "system", "content": SYSTEM}])
charts = st.session_state.setdefault("charts", {})
st.session_state.setdefault("tokens", 0)


def show_tool(call: dict, result: str, chart: alt.Chart | None) -> None:
    with st.expander(f"🔧 {call['function']['name']}"):
        st.code(call["function"]["arguments"], language="json")
        st.text(result)
    if chart:
        st.altair_chart(chart)


def show_history() -> None:
    calls = {}
    bubble = None  # one for each question, and one for all that it brought about
    for place, message in enumerate(messages[1:], start=1):
        if message["role"] == "user" or bubble is None:
            bubble = st.chat_message(message["role"])
        with bubble:
            if message["role"] == "tool":
                show_tool(calls[message["tool_call_id"]], message["content"], charts.get(place))
            elif message["content"]:
                st.markdown(message["content"])
        calls.update({call["id"]: call for call in message.get("tool_calls", [])})
        if message["role"] == "user":
            bubble = None


def ask_model(client: OpenAI) -> dict:
    """One call of the model. Its text is shown as it comes; its tool calls come in pieces and are put together."""
    calls: dict[int, dict] = {}

    def pieces():
        stream = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=tools.SCHEMAS,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if chunk.usage:
                st.session_state.tokens += chunk.usage.total_tokens
            if not chunk.choices:
                continue
            delta = chunk.choices[0].delta
            if delta.content:
                yield delta.content
            for piece in delta.tool_calls or []:
                call = calls.setdefault(
                    piece.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["id"] = piece.id or call["id"]
                if piece.function:
                    call["function"]["name"] += piece.function.name or ""
                    call["function"]["arguments"] += piece.function.arguments or ""

    answer = {"role": "assistant", "content": st.write_stream(pieces()) or ""}
    if calls:
        answer["tool_calls"] = [calls[index] for index in sorted(calls)]
    return answer


def run_turn() -> None:
    """Calls the model, and the tools it asks for, until it has nothing more to ask."""
    client = OpenAI()
    for _ in range(MAX_ROUNDS):
        answer = ask_model(client)
        done = [answer]
        for call in answer.get("tool_calls", []):
            with st.spinner(f"{call['function']['name']} …"):
                result = tools.run(call["function"]["name"], call["function"]["arguments"])
            chart = None
            if isinstance(result, alt.Chart):
                chart = charts[len(messages) + len(done)] = result
                result = "The chart is shown to the user."
            show_tool(call, result, chart)
            done.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        messages.extend(done)  # all at once: the model refuses a tool call without its result
        if "tool_calls" not in answer:
            return
    st.warning(f"I stopped after {MAX_ROUNDS} rounds of tools.")


show_history()
if question := st.chat_input("Ask about the sales"):
    messages.append({"role": "user", "content": question})
    st.chat_message("user").markdown(question)
    with st.chat_message("assistant"):
        try:
            run_turn()
        except OpenAIError as e:
            st.error(f"The model could not be reached: {e}")

with st.sidebar:
    st.subheader("Sales")
    st.dataframe(tools.sales().head(20), hide_index=True)
    if st.button("New chat"):
        st.session_state.clear()
        st.rerun()
    st.download_button("Save chat", json.dumps(messages[1:], indent=2), "chat.json")
    st.caption(f"{st.session_state.tokens:,} tokens so far")
