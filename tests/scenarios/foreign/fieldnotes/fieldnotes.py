#!/usr/bin/env python3
"""A notebook for the garden: Markdown files with a YAML head, as a small site."""
import datetime
import os

import markdown
import yaml
from bs4 import BeautifulSoup
from flask import Flask, abort, jsonify, render_template, request

app = Flask(__name__)
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "notes")


class Note:
    def __init__(self, slug, head, body):
        self.slug = slug
        self.title = head.get("title", slug.replace("-", " ").capitalize())
        self.date = head.get("date", datetime.date(1970, 1, 1))
        self.tags = head.get("tags") or []
        self.html = markdown.markdown(body, extensions=["tables", "fenced_code", "toc"])
        self.soup = BeautifulSoup(self.html, "html.parser")

    @property
    def text(self):
        return self.soup.get_text(" ", strip=True)

    @property
    def excerpt(self):
        first = self.soup.find("p")
        words = first.get_text(" ", strip=True).split() if first else []
        return " ".join(words[:30]) + (" …" if len(words) > 30 else "")

    @property
    def headings(self):
        return [(h.get("id"), h.get_text()) for h in self.soup.find_all(["h2", "h3"])]

    @property
    def todo(self):
        items = [li.get_text(" ", strip=True) for li in self.soup.find_all("li")]
        return [item[3:].strip() for item in items if item.startswith("[ ]")]


def split(text):
    """The YAML head between two lines of dashes, and the rest."""
    if text.startswith("---\n"):
        head, _, body = text[4:].partition("\n---\n")
        return yaml.safe_load(head) or {}, body
    return {}, text


def read(slug):
    path = os.path.join(FOLDER, slug + ".md")
    if not slug.replace("-", "").isalnum() or not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as f:
        head, body = split(f.read())
    return Note(slug, head, body)


def all_notes():
    slugs = [name[:-3] for name in os.listdir(FOLDER) if name.endswith(".md")]
    return sorted((read(slug) for slug in slugs), key=lambda n: n.date, reverse=True)


@app.route("/")
def index():
    tag = request.args.get("tag")
    q = request.args.get("q", "").lower()
    notes = [n for n in all_notes() if (not tag or tag in n.tags) and q in (n.title + " " + n.text).lower()]
    tags = sorted({t for n in all_notes() for t in n.tags})
    return render_template("index.html", notes=notes, tags=tags, q=q)


@app.route("/notes/<slug>")
def note(slug):
    found = read(slug) or abort(404)
    return render_template("note.html", note=found)


@app.route("/todo.json")
def todo():
    return jsonify({n.slug: n.todo for n in all_notes() if n.todo})


@app.route("/preview", methods=["POST"])
def preview():
    head, body = split(request.get_data(as_text=True))
    return Note("preview", head, body).html


@app.errorhandler(404)
def missing(error):
    return render_template("index.html", notes=[], tags=[], q=""), 404


if __name__ == "__main__":
    app.run(debug=False)
