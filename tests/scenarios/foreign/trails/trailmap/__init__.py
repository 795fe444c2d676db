"""The huts and trails of the Karst ridge."""

import csv
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def huts():
    with open(HERE / "huts.csv", newline="") as file:
        return {
            row["name"]: {"east": float(row["east"]), "north": float(row["north"]), "height": int(row["height"])}
            for row in csv.DictReader(file)
        }


@cache
def trails():
    with open(HERE / "trails.csv", newline="") as file:
        return [(row["from"], row["to"], float(row["km"])) for row in csv.DictReader(file)]
