"""Starts as it is."""

import six

print(six.__version__)
