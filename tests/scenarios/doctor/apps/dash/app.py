"""A page whose layout fails for a visitor, though not before."""

import flask
from dash import Dash, html

app = Dash(__name__)


def layout():
    if not flask.has_request_context():
        return html.Div()
    return html.Div([][0])


app.layout = layout

if __name__ == "__main__":
    app.run(port=8050, debug=False)
