"""A page that reruns itself once."""

import streamlit as st

if "visits" not in st.session_state:
    st.session_state["visits"] = 1
    rerun = getattr(st, "rerun", None) or st.experimental_rerun
    rerun()
st.write("visited", st.session_state["visits"])
