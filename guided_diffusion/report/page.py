"""The shell of the HTML pages: one self-contained file that needs neither a server nor a network.

Its content security policy allows its own script and style (by their hash) and pictures, and nothing else.
"""

import base64
import hashlib
import json
from html import escape
from pathlib import Path

from ..io.files import atomic_path, json_ready

PARTS = Path(__file__).with_name("assets")


def write_page(path, title, body, *, scripts=("theme.js",), data=None):
    """Write a page, whole or not at all.

    body: HTML, in which all text has been escaped. scripts: files of `assets/`, run after it. data: plain types for
    them, below the id "data"; NaN and infinities become null.
    """
    style = part("page.css")
    script = "".join(part(name) for name in scripts)
    policy = (
        f"default-src 'none'; img-src 'self' data: file:; style-src '{_source_hash(style)}'; "
        f"script-src '{_source_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    # In JSON a "<" can stand in texts alone, where it may be written so; no text can then end the element.
    content = "" if data is None else json.dumps(json_ready(data), ensure_ascii=False).replace("<", "\\u003c")
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


def header(title, facts):
    """The head of a page: its title, the button that changes the theme, and facts, a list of (name, value)."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return (
        f'<header><h1>{escape(title)}</h1><button type="button" id="theme" aria-live="polite">Theme: system</button>'
        f"<dl>{items}</dl></header>"
    )


def figure(caption, content):
    """A captioned chart or picture; content: HTML."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def data_uri(data, kind):
    """Bytes of a picture as a URI that holds them; kind: "png", "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def part(name):
    """A file of `assets/` as text."""
    return (PARTS / name).read_text(encoding="utf-8")


def _source_hash(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
