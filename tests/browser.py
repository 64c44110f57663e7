"""Reports in a real browser, where there is one."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest


def assert_whole_and_fetches_nothing(pages, profile):
  """Wide and narrow.

  Args:
    pages: a page's path -> how many pictures it has.
    profile: a folder for the browser.
  """
  with chromium(profile) as browser:
    for path, pictures in pages.items():
      for width in (1200, 420):
        requests = open_page(browser, path, width)
        seen = browser.execute_async_script(SEEN)
        assert len(seen["pictures"]) == pictures
        assert np.min(seen["pictures"]) > 50
        assert seen["overflow"] <= 0, (path, width)
        assert seen["fetched"] == []
        outside = [url for url in requests if not url.startswith("data:")]
        assert outside == [path.as_uri()]
    assert browser.get_log("browser") == []


@contextmanager
def chromium(profile):
  """A headless Chromium that logs its console and its requests."""
  selenium = pytest.importorskip("selenium.webdriver", exc_type=ImportError)
  browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not (browser and driver):
    pytest.skip("chromium and chromedriver are not installed")
  options = selenium.ChromeOptions()
  options.binary_location = browser
  for argument in (
    *("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"),
    *("no-first-run", "disable-background-networking", "disable-sync"),
    *("disable-component-update", f"user-data-dir={profile}"),
  ):
    options.add_argument(f"--{argument}")
  options.set_capability(
    "goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"}
  )
  service = selenium.ChromeService(executable_path=driver)
  opened = selenium.Chrome(options=options, service=service)
  try:
    yield opened
  finally:
    opened.quit()


def open_page(browser, path, width):
  """Opens it in a window of this width; returns what it asked for."""
  browser.execute_cdp_cmd(
    "Emulation.setDeviceMetricsOverride",
    {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
  )
  browser.get(path.as_uri())
  messages = [
    json.loads(entry["message"])["message"]
    for entry in browser.get_log("performance")
  ]
  return [
    message["params"]["request"]["url"]
    for message in messages
    if message["method"] == "Network.requestWillBeSent"
    # The browser's own pages are of no concern.
    and message["params"]["documentURL"] == path.as_uri()
  ]


SEEN = """
const done = arguments[0];
const images = [...document.querySelectorAll("img")];
const decoded = images.map((image) => image.decode().catch(() => null));
Promise.all(decoded).then(() => done({
  pictures: images.map((image) => {
    const box = image.getBoundingClientRect();
    return [box.width, box.height, image.naturalWidth, image.naturalHeight];
  }),
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  fetched: performance.getEntriesByType("resource").map((e) => e.name)
    .filter((name) => !name.startsWith("data:")),
}));
"""
