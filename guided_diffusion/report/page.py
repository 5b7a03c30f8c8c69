"""The frame of the HTML pages: each is one self-contained file that needs neither a server nor a network.

The content security policy allows only pictures and the page's own script and style, by their hash.
"""

import base64
import hashlib
import json
from html import escape
from pathlib import Path

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
    """The head of a page: title, theme button and facts, a list of (name, value); returns HTML."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return (
        f'<header><h1>{escape(title)}</h1><button type="button" id="theme" aria-live="polite">Theme: system</button>'
        f"<dl>{items}</dl></header>"
    )


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
