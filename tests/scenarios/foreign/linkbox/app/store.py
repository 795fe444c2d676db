from collections import Counter
from datetime import datetime, timezone
from itertools import count

from pydantic import BaseModel, Field, HttpUrl


class NewLink(BaseModel):
    url: HttpUrl
    title: str = Field("", max_length=200)
    tags: list[str] = []


class Link(NewLink):
    id: int
    added: datetime


class Box:
    """Links, newest first. Kept in memory: it is for one afternoon's workshop."""

    def __init__(self):
        self._ids = count(1)
        self._links: dict[int, Link] = {}

    def add(self, new: NewLink) -> Link:
        link = Link(id=next(self._ids), added=datetime.now(timezone.utc), **new.model_dump())
        self._links[link.id] = link
        return link

    def remove(self, id: int) -> bool:
        return self._links.pop(id, None) is not None

    def find(self, text: str = "", tag: str = "") -> list[Link]:
        text = text.lower()
        return [
            link
            for link in reversed(self._links.values())
            if text in f"{link.title} {link.url}".lower() and (not tag or tag in link.tags)
        ]

    def tags(self) -> list[tuple[str, int]]:
        return Counter(tag for link in self._links.values() for tag in link.tags).most_common()
