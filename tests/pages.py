"""The content of HTML pages, and a headless browser that shows them."""

import base64
import io
import json
import re
import shutil
from html import unescape

import pytest
from PIL import Image


def content(page):
    """The page's data."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


CARD = re.compile(
    r'<a class="card" data-index="(?P<index>\d+)" href="(?P<href>[^"]*)"><img src="(?P<src>[^"]*)" alt="(?P<alt>[^"]*)"'
    r'.*?title="(?P<name>[^"]*)".*?class="values">(?P<values>[^<]*)<'
)


def cards(page):
    """The cards of a report in their order in the file: dicts of "index", "href", "src", "alt", "name", "values"."""
    found = [match.groupdict() for match in CARD.finditer(page.read_text())]
    return [{key: unescape(value) for key, value in card.items()} for card in found]


def main_figures(page):
    """The line of main figures: {label: (value, note)}."""
    line = re.search(r'<dl class="tiles".*?</dl>', page.read_text())[0]
    tiles = re.findall(r'<dt>(.*?)</dt><dd>(.*?)</dd>(?:<dd class="note">(.*?)</dd>)?', line)
    return {unescape(label): (unescape(value), unescape(note)) for label, value, note in tiles}


def links(page):
    """The addresses of all links, without those inside the page."""
    return [unescape(address) for address in re.findall(r'<a [^>]*href="([^"#][^"]*)"', page.read_text())]


def picture(source):
    kind, _, data = source.partition(";base64,")
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium; skips the test where it is not installed."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --disable-dev-shm-usage --user-data-dir={profile} "
        "--window-size=1300,900"
    ).split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield started
    started.quit()


TOP = "return document.querySelector(arguments[0]).getBoundingClientRect().top"  # of an element, in pixels


class Page:
    """A page in the browser."""

    def __init__(self, browser, path):
        self.browser = browser
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # of an earlier test's `resize`
        browser.get(path.as_uri())

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def wait(self, script):
        """Wait until the script returns something true; returns that."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 60, 0.05).until(lambda _: self.run(script))

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def shown(self):
        return self.run("return [...document.querySelectorAll('.card .name')].map((e) => e.textContent)")

    def text(self, name):
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def focused(self):
        return self.run("return document.activeElement.querySelector('.name')?.textContent")

    def colours(self):
        """How many pixels of the opened case are red (mask), green (truth), blue and yellow (members 1 and 2)."""
        return self.wait(
            """const c = document.getElementById('canvas'); if (!c.width) return null;
            const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const n = [0, 0, 0, 0];
            for (let i = 0; i < p.length; i += 4) {
              if (p[i] == 255 && p[i + 1] == 64) n[0]++;
              if (p[i] == 64 && p[i + 1] == 255) n[1]++;
              if (p[i] == 80 && p[i + 2] == 255) n[2]++;
              if (p[i] == 255 && p[i + 1] == 210) n[3]++;
            } return n;"""
        )

    def complaints(self):
        """The messages of the browser's console, without the advice that `colours` causes."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in messages if "willReadFrequently" not in message]
