"""What the model may do: each function here is offered to it as a tool."""

import json
import socket
from functools import lru_cache
from pathlib import Path

import altair as alt
import pandas as pd
import requests
from bs4 import BeautifulSoup

SALES = Path(__file__).parent / "data" / "sales.csv"
MAX_PAGE = 6000
TIMEOUT = 10


@lru_cache(maxsize=1)
def sales() -> pd.DataFrame:
    return pd.read_csv(SALES, parse_dates=["date"])


def check_columns(*columns: str) -> None:
    unknown = [c for c in columns if c not in sales().columns]
    if unknown:
        raise ValueError(f"no such column: {', '.join(unknown)}; there are {', '.join(sales().columns)}")


def fetch_page(url: str) -> str:
    """The readable text of a web page."""
    response = requests.get(url, timeout=TIMEOUT, headers={"User-Agent": "analyst/1.0"})
    response.raise_for_status()
    if "html" not in response.headers.get("Content-Type", "html"):
        return response.text[:MAX_PAGE]
    soup = BeautifulSoup(response.content, "html.parser")
    for tag in soup(["script", "style", "noscript"]):
        tag.decompose()
    lines = (line.strip() for line in soup.get_text("\n").splitlines())
    return "\n".join(line for line in lines if line)[:MAX_PAGE]


def analyse_csv(question: str, columns: list[str], aggregation: str) -> str:
    """Describes columns of the sales table, or adds up its numbers grouped by the other columns."""
    check_columns(*columns)
    table = sales()
    values = [c for c in columns if pd.api.types.is_numeric_dtype(table[c])]
    groups = [c for c in columns if c not in values]
    if aggregation == "describe":
        result = table[columns].describe()
    elif aggregation not in ("sum", "mean", "count"):
        raise ValueError(f"cannot do {aggregation}; use describe, sum, mean or count")
    elif not values:
        raise ValueError("name at least one column of numbers: units, unit_price, discount or revenue")
    elif groups:
        result = table.groupby(groups)[values].agg(aggregation)
    else:
        result = table[values].agg(aggregation)
    return f"{question}\n{result.round(2).to_string(max_rows=60)}"


def draw_chart(kind: str, x: str, y: str) -> alt.Chart:
    """A chart of the sales table; the page shows it to the user."""
    check_columns(x, y)
    table = sales()
    if kind == "scatter":
        chart = alt.Chart(table).mark_circle()
    elif kind in ("bar", "line"):
        if x == "date":  # one point a month reads better than one a day
            table = table.assign(date=table["date"].dt.to_period("M").dt.to_timestamp())
        table = table.groupby(x, as_index=False)[y].sum()
        chart = alt.Chart(table).mark_bar() if kind == "bar" else alt.Chart(table).mark_line(point=True)
    else:
        raise ValueError(f"cannot draw {kind}; use bar, line or scatter")
    return chart.encode(x=x, y=y, tooltip=[x, y]).properties(title=f"{y} by {x}", height=320)


def send_report(url: str, body: str) -> str:
    """Posts a finished report to wherever it was asked for."""
    response = requests.post(url, json={"report": body}, timeout=TIMEOUT)
    response.raise_for_status()
    return f"Sent {len(body)} characters to {url}: HTTP {response.status_code} {response.text[:200]}"


def check_host(host: str, port: int, payload: str = "") -> str:
    """Whether a service is up: connects, sends one line and reads what comes back."""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        if payload:
            connection.sendall(payload.encode() + b"\n")
        try:
            answer = connection.recv(1024)
        except TimeoutError:
            return f"{host}:{port} is up, but said nothing in 5 seconds"
    if not answer:
        return f"{host}:{port} accepted the connection and closed it"
    return f"{host}:{port} is up and answered: {answer.decode(errors='replace')}"


def lookup(name: str) -> str:
    """The addresses of a host name."""
    found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    return f"{name}: " + ", ".join(sorted({address[4][0] for address in found}))


def run(name: str, arguments: str):
    """Runs the tool that the model asked for. What goes wrong is told to the model, which can then try again."""
    try:
        if name not in TOOLS:
            raise ValueError(f"no such tool: {name}")
        return TOOLS[name](**json.loads(arguments or "{}"))
    except Exception as e:
        return f"Error: {type(e).__name__}: {e}"


TOOLS = {f.__name__: f for f in (fetch_page, analyse_csv, draw_chart, send_report, check_host, lookup)}


def schema(name: str, description: str, required: list[str], /, **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def text(description: str, **more) -> dict:
    return {"type": "string", "description": description, **more}


SCHEMAS = [
    schema(
        "fetch_page",
        "Fetch a web page and return its text.",
        ["url"],
        url=text("Address of the page, with https://"),
    ),
    schema(
        "analyse_csv",
        "Analyse the sales table. For sum, mean and count the numbers are grouped by the columns that are not numbers.",
        ["question", "columns", "aggregation"],
        question=text("What you want to find out, in a few words"),
        columns={"type": "array", "items": {"type": "string"}, "description": "Columns to look at"},
        aggregation=text("What to compute", enum=["describe", "sum", "mean", "count"]),
    ),
    schema(
        "draw_chart",
        "Draw a chart of the sales table and show it to the user.",
        ["kind", "x", "y"],
        kind=text("Kind of chart", enum=["bar", "line", "scatter"]),
        x=text("Column on the x axis"),
        y=text("Column on the y axis"),
    ),
    schema(
        "send_report",
        "Send a finished report to a web address.",
        ["url", "body"],
        url=text("Address to post the report to"),
        body=text("Text of the report"),
    ),
    schema(
        "check_host",
        "Check whether a service is up: connect to its port, send a line and return the answer.",
        ["host", "port"],
        host=text("Host name or address"),
        port={"type": "integer", "description": "TCP port"},
        payload=text("Line to send; may be left out"),
    ),
    schema("lookup", "Look up the addresses of a host name.", ["name"], name=text("Host name")),
]
