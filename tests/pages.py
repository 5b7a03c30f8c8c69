"""The content of HTML pages, and a headless browser that shows them."""

import base64
import io
import json
import re
import shutil

import pytest
from PIL import Image


def content(page):
    """The page's data."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


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


class Page:
    """A page in the browser."""

    def __init__(self, browser, path):
        self.browser = browser
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

    def shown(self):
        return self.run("return [...document.querySelectorAll('.card .name')].map((e) => e.textContent)")

    def focused(self):
        return self.run("return document.activeElement.querySelector('.name')?.textContent")

    def colours(self):
        """How many pixels of the opened case are red (mask), green (truth) and blue (members)."""
        return self.wait(
            """const c = document.getElementById('canvas'); if (!c.width) return null;
            const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const n = [0, 0, 0];
            for (let i = 0; i < p.length; i += 4) {
              if (p[i] == 255 && p[i + 1] == 64) n[0]++;
              if (p[i] == 64 && p[i + 1] == 255) n[1]++;
              if (p[i] == 80 && p[i + 2] == 255) n[2]++;
            } return n;"""
        )

    def complaints(self):
        """The messages of the browser's console, without the advice that `colours` causes."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in messages if "willReadFrequently" not in message]
