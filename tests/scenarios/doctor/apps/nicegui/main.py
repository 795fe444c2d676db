"""A page that fails when it is looked at."""

from nicegui import ui


@ui.page("/")
def ledger():
    ui.label("{:.2f}".format(None))


ui.run(port=8080, reload=False, show=False)
