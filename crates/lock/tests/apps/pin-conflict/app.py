"""Pins two versions that do not go together."""

import flask

print(flask.Flask(__name__))
