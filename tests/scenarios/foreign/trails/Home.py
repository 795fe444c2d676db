from datetime import date

import streamlit as st

from trailmap import huts, trails
from trailmap.graph import build, walk
from trailmap.plan import stages

st.set_page_config(page_title="Trails", page_icon="🥾", layout="wide")
st.title("🥾 Walks of the Karst ridge")
st.write("Pick two huts and a pace. The other pages have the map and the season.")

graph = build(huts(), trails())
names = sorted(graph.nodes)

left, middle, right = st.columns(3)
start = left.selectbox("From", names, index=names.index("Lower Mill"))
goal = middle.selectbox("To", names, index=names.index("Cloud Hut"))
pace = right.slider("Pace on the flat (km/h)", 2.5, 6.0, 4.0, 0.5)
first_day = left.text_input("First day", date(2026, 6, 12).strftime("%d %b %Y"))
hours = middle.slider("Hours of walking a day", 3, 10, 6)

if start == goal:
    st.info("You are there already.")
    st.stop()

route = walk(graph, start, goal, pace)
st.metric("Walking time", f"{route.hours:.1f} h", f"{route.km:.1f} km, {route.climb} m up")
st.write(" → ".join(route.huts))

try:
    days = stages(graph, route, first_day, hours)
except ValueError as problem:
    st.error(f"{problem}")
else:
    st.dataframe(days, hide_index=True)
