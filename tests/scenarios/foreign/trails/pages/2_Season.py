from datetime import date

import pandas as pd
import plotly.express as px
import streamlit as st

from trailmap import huts
from trailmap.plan import season

st.set_page_config(page_title="Season", page_icon="❄️")
st.title("Season")

year = st.number_input("Year", 2020, 2040, 2026)
rows = [(name, *season(place["height"], int(year))) for name, place in huts().items()]
table = pd.DataFrame(rows, columns=["hut", "opens", "closes"]).sort_values("opens")

st.plotly_chart(px.timeline(table, x_start="opens", x_end="closes", y="hut"))
today = date.today()
open_now = table[(table["opens"] <= today) & (table["closes"] >= today)]
st.write(f"Open today: {', '.join(open_now['hut']) or 'none'}")
