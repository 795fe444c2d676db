"""Runs every client that is here, one check after the other."""

import checks
import over_http  # noqa: F401
import over_grpc  # noqa: F401
import models  # noqa: F401
import tools  # noqa: F401
import programs  # noqa: F401
import databases  # noqa: F401

checks.run()
