import plotly.graph_objects as go
import streamlit as st

from trailmap import huts, trails
from trailmap.graph import build, busiest

st.set_page_config(page_title="Map", page_icon="🗺️", layout="wide")
st.title("Map")

graph = build(huts(), trails())
crowd = busiest(graph)

figure = go.Figure()
for a, b in graph.edges:
    ends = [graph.nodes[a], graph.nodes[b]]
    figure.add_scatter(
        x=[n["east"] for n in ends],
        y=[n["north"] for n in ends],
        mode="lines",
        line={"color": "#b8a48a", "width": 2},
        hoverinfo="skip",
    )
figure.add_scatter(
    x=[n["east"] for n in graph.nodes.values()],
    y=[n["north"] for n in graph.nodes.values()],
    text=list(graph.nodes),
    textposition="top center",
    mode="markers+text",
    marker={"size": [12 + 30 * crowd[name] for name in graph.nodes], "color": [n["height"] for n in graph.nodes.values()]},
)
figure.update_layout(showlegend=False, height=560, yaxis={"scaleanchor": "x"})
st.plotly_chart(figure)
st.caption("Larger huts lie on more of the shortest walks. Darker is lower.")
