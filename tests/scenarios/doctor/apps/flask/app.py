"""A page whose template is missing."""

from flask import Flask, render_template

app = Flask(__name__)


@app.route("/")
def ledger():
    return render_template("ledger.html")
