"""A page that shows one thing and then fails, as it would without its key."""

import os

import streamlit as st

st.title("Ledger")
st.write("Balances of today")


def key():
    return os.environ["LEDGER_KEY"]


st.write(key())
