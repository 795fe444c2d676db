"""Requires a repository of what is released as well."""

import six

print(six.__version__)
