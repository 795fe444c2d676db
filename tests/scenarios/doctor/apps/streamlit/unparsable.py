import streamlit as st

st.write("unbalanced"
