"""A page that fails when it is looked at."""

import panel as pn

balances = {}
pn.pane.Markdown("Balance: {}".format(balances["today"])).servable()
