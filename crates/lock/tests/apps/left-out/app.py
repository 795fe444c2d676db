"""Requires what exists nowhere, and does not use it."""

import six

print(six.__version__)
