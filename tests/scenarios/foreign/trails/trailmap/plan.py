"""Days and seasons."""

from datetime import date, timedelta

import pandas as pd
from dateutil import parser
from dateutil.relativedelta import relativedelta

from .graph import leg_hours


def stages(graph, route, first_day, hours):
    """Splits a route into days, never leaving anybody out between two huts."""
    day = parser.parse(first_day, dayfirst=True).date()
    rows, walked, begin = [], 0.0, route.huts[0]
    for a, b in zip(route.huts, route.huts[1:]):
        leg = leg_hours(graph, a, b)
        if leg > hours:
            raise ValueError(f"{a} to {b} takes {leg:.1f} hours; walk longer days")
        if walked + leg > hours:
            rows.append((day, begin, a, round(walked, 1)))
            day, walked, begin = day + timedelta(days=1), 0.0, a
        walked += leg
    rows.append((day, begin, route.huts[-1], round(walked, 1)))
    return pd.DataFrame(rows, columns=["day", "from", "to", "hours"])


def season(height, year):
    """Higher huts open later and close earlier, by a week for every 200 m above 500 m."""
    weeks = max(0, height - 500) // 200
    return date(year, 4, 15) + relativedelta(weeks=weeks), date(year, 11, 15) - relativedelta(weeks=weeks)
