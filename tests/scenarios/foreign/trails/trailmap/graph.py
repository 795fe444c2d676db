"""Walking times as a graph."""

from dataclasses import dataclass

import networkx as nx


@dataclass
class Route:
    huts: list[str]
    hours: float
    km: float
    climb: int


def build(huts, trails):
    graph = nx.Graph()
    for name, place in huts.items():
        graph.add_node(name, **place)
    for a, b, km in trails:
        graph.add_edge(a, b, km=km)
    return graph


def leg_hours(graph, a, b, pace=4.0):
    """Naismith's rule: the distance at your pace, and an hour for every 600 m up."""
    climb = max(0, graph.nodes[b]["height"] - graph.nodes[a]["height"])
    return graph.edges[a, b]["km"] / pace + climb / 600


def walk(graph, start, goal, pace=4.0):
    huts = nx.shortest_path(graph, start, goal, weight=lambda a, b, _: leg_hours(graph, a, b, pace))
    legs = list(zip(huts, huts[1:]))
    return Route(
        huts,
        sum(leg_hours(graph, a, b, pace) for a, b in legs),
        sum(graph.edges[leg]["km"] for leg in legs),
        sum(max(0, graph.nodes[b]["height"] - graph.nodes[a]["height"]) for a, b in legs),
    )


def busiest(graph):
    return nx.betweenness_centrality(graph, weight="km")
