"""The frame of the HTML pages: each is one self-contained file that needs neither a server nor a network.

The content security policy allows only pictures and the page's own script and style, by their hash.
"""

import base64
import hashlib
import json
import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..io.files import atomic_path, json_ready

ASSETS = Path(__file__).with_name("assets")


def write_page(path, title, body, *, scripts=("theme.js",), data=None):
    """Write a page, whole or not at all.

    body: HTML with all text escaped. scripts: files of `assets/`, run after the body. data: plain types for the
    scripts, as JSON in the element with the id "data"; NaN and infinities become null.
    """
    style = asset("page.css")
    script = "".join(asset(name) for name in scripts)
    policy = (
        f"default-src 'none'; img-src 'self' data: file:; style-src '{_source_hash(style)}'; "
        f"script-src '{_source_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    # In JSON a "<" only occurs in strings, where it may be escaped. So no string can end the element.
    content = "" if data is None else json.dumps(json_ready(data), ensure_ascii=False, separators=(",", ":"))
    content = content.replace("<", "\\u003c")
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        + (f'<script type="application/json" id="data">{content}</script>\n' if content else "")
        + f"<script>{script}</script>\n</body>\n</html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def header(title, subtitle, links=()):
    """The head of a page: title, theme button, a line of text, and (text, address) of its parts; returns HTML."""
    items = "".join(f'<a href="{escape(address, quote=True)}">{escape(text)}</a>' for text, address in links)
    button = '<button type="button" id="theme" aria-live="polite" hidden>Theme: system</button>'
    nav = f'<nav aria-label="Parts">{items}</nav>' if items else ""
    return f"<header><h1>{escape(title)}</h1>{button}<p>{escape(subtitle)}</p>{nav}</header>"


def tiles(line, label):
    """A line of main figures, (label, value, note) each, as an HTML list with a label for screen readers."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        + (f'<dd class="note">{escape(note)}</dd>' if note else "")
        + "</div>"
        for name, value, note in line
    )
    return f'<dl class="tiles" aria-label="{escape(label, quote=True)}">{"".join(items)}</dl>'


def facts_list(facts):
    """Facts, a list of (name, value), as an HTML list."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>'


def swatch(colour):
    """A short line of a colour, "#rrggbb", for legends; the policy forbids style attributes, so it is a picture."""
    return (
        f'<svg class="mark" viewBox="0 0 14 3" aria-hidden="true"><rect width="14" height="3" fill="{colour}"/></svg>'
    )


def link_to(path, folder):
    """The address of a file for a page in `folder`, relative and quoted; "" for one that is missing or lies outside."""
    path, folder = Path(path), Path(folder)
    if not path.exists() or not path.resolve().is_relative_to(folder.resolve()):
        return ""
    address = Path(os.path.relpath(path, folder)).as_posix()
    return "" if address.startswith("../") else quote(address)


def figure(caption, content):
    """A chart or picture with its caption, as HTML; content: HTML."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def data_uri(data, kind):
    """A picture's bytes as a data URI; kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def asset(name):
    """A file of `assets/`, as text."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _source_hash(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
