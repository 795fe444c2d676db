import re
from html import unescape
from pathlib import Path
from typing import Annotated

import httpx
from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import ValidationError

from .store import Box, Link, NewLink

HERE = Path(__file__).resolve().parent

app = FastAPI(title="Linkbox", version="0.2")
app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
templates = Jinja2Templates(directory=HERE / "templates")

box = Box()
box.add(NewLink(url="https://www.python.org/", title="Python", tags=["python"]))
box.add(NewLink(url="https://fastapi.tiangolo.com/", title="FastAPI", tags=["python", "web"]))


async def title_of(url: str) -> str:
    """The page's own title, or nothing when it cannot be had in time."""
    try:
        async with httpx.AsyncClient(timeout=4, follow_redirects=True) as client:
            response = await client.get(url)
            response.raise_for_status()
    except httpx.HTTPError:
        return ""
    found = re.search(r"<title[^>]*>(.*?)</title>", response.text, re.I | re.S)
    return unescape(found.group(1)).strip()[:200] if found else ""


@app.get("/", response_class=HTMLResponse)
async def index(request: Request, q: str = "", tag: str = ""):
    context = {"links": box.find(q, tag), "tags": box.tags(), "q": q, "tag": tag}
    return templates.TemplateResponse(request, "index.html", context)


@app.post("/add")
async def add(url: Annotated[str, Form()], tags: Annotated[str, Form()] = ""):
    try:
        new = NewLink(url=url, tags=sorted(set(tags.lower().split())))
    except ValidationError:
        raise HTTPException(422, "that is not the address of a page")
    new.title = await title_of(url) or url
    box.add(new)
    return RedirectResponse("/", status_code=303)


@app.get("/api/links")
async def links(q: str = "", tag: str = "") -> list[Link]:
    return box.find(q, tag)


@app.post("/api/links", status_code=201)
async def create(new: NewLink) -> Link:
    return box.add(new)


@app.delete("/api/links/{id}", status_code=204)
async def delete(id: int):
    if not box.remove(id):
        raise HTTPException(404, "no such link")
