"""A real, headless Chromium for the tests of what is drawn; where there is none, they are skipped and say so."""

import contextlib
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium():
    """Path of the browser; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` to run what needs a browser")
    return found


@contextlib.contextmanager
def started():
    """Start the browser."""
    path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install 'flowdeco[test]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*QUIET])
        yield browser
        browser.close()


class Sheet:
    """A page that is open in the browser, with what it said and what it asked the network for (and is not given)."""

    def __init__(self, browser, path, *, width=1200, height=900, scheme="light"):
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(15_000)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        # A request that the page's policy forbids never gets as far as a route, though playwright may report it.
        self.page.route(lambda url: not url.startswith("file:"), self._refuse)
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.page.close()

    def _refuse(self, route):
        self.asked.append(route.request.url)
        route.abort()

    def names(self):
        """Names of the rows that are there."""
        return self.page.locator("#rows .line .name").all_text_contents()

    def focused(self):
        """Text of what has the focus."""
        return self.page.evaluate(
            "document.activeElement.querySelector('.name')?.textContent ?? document.activeElement.id"
        )

    def pale(self, least=4.5):
        """Texts whose contrast with what is behind them is too low (WCAG AA: 4.5)."""
        return self.page.evaluate(PALE, least)


PALE = """(least) => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const light = ([r, g, b]) => { const f = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const behind = (el) => { const stack = [];
    for (let at = el; at; at = at.parentElement) { const c = parse(getComputedStyle(at).backgroundColor); if (c[3] > 0) stack.push(c); if (c[3] === 1) break; }
    let base = [255, 255, 255];
    for (const [r, g, b, a] of stack.reverse()) base = [r, g, b].map((v, i) => v * a + base[i] * (1 - a));
    return base; };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !el.getClientRects().length || el.closest("script, style, noscript, .unseen, .skip")) continue;
    const one = light(parse(getComputedStyle(el).color)), two = light(behind(el));
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < least) found.push(`${ratio.toFixed(2)} ${el.className} ${text.slice(0, 40)}`);
  }
  return [...new Set(found)];
}"""
