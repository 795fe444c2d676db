"""Uses a name that a later release took out."""

from werkzeug.urls import url_quote

print(url_quote("a b"))
