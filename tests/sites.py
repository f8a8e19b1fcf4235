"""Static sites as a reader meets them: links read from the HTML, and pages opened by a headless browser."""

import posixpath
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OWN = ("file:", "data:", "blob:")
# What a browser fetches by itself, without a click.
LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}

# What is wrong with a page as drawn; an element may stick out where a box around it, less than a
# whole section, scrolls.
FAULTS = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push(`page is ${document.documentElement.scrollWidth} wide`);
  for (const image of document.images)
    if (!image.naturalWidth || !image.width) found.push(`image ${image.src} does not show`);
  for (const formula of document.querySelectorAll('.math'))
    if (!formula.querySelector('mjx-container svg')?.getBoundingClientRect().width) found.push('formula as source');
  const scrolls = e => !['ARTICLE', 'SECTION'].includes(e.tagName) &&
    (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const shown = e => e.offsetParent && getComputedStyle(e).position == 'static';
  for (const e of document.querySelectorAll('article *'))
    if (shown(e) && e.getBoundingClientRect().right > wide + 1 && !scrolls(e))
      found.push(`${e.tagName} ${e.className} sticks out`);
  return found;
}"""


class Page(HTMLParser):
    """Anchors (`ids`), links to follow (`links`) and what is loaded at once (`loaded`) of one HTML file."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loaded = {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids |= {named["id"]} if named.get("id") else set()
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        if named.get(LOADED.get(tag)):
            self.loaded.append(named[LOADED[tag]])


def pages(site: Path) -> dict[str, Page]:
    """Every page of a site by its path."""
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def broken(site: Path) -> list[str]:
    """Links and loaded files that lead nowhere, and whatever is loaded from elsewhere."""
    found, known = [], pages(site)
    for name, page in known.items():
        for target in page.links + page.loaded:
            parts = urlsplit(target)
            if parts.scheme in ("data", "mailto") or (parts.scheme and target not in page.loaded):
                continue
            path = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
            )
            anchored = path not in known or unquote(parts.fragment) in known[path].ids
            if parts.scheme or parts.netloc or not (site / path).is_file() or not anchored:
                found.append(f"{name}: {target}")
    return found


def faults(browser, site: Path, names: list[str], width: int) -> list[str]:
    """What goes wrong when these pages are opened from file:// in a window of this width."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    tab, found = context.new_page(), []
    tab.on("console", lambda m: found.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: found.append(f"script: {error}"))
    tab.on("requestfailed", lambda r: found.append(f"failed: {r.url}"))
    tab.on("request", lambda r: None if r.url.startswith(OWN) else found.append(f"request: {r.url}"))
    told = []
    for name in names:
        tab.goto((site / name).resolve().as_uri())
        if tab.query_selector(".math"):
            tab.wait_for_selector("mjx-container", state="attached")
        found += tab.evaluate(FAULTS)
        told += [f"{width} px, {name}: {line}" for line in found]
        found.clear()
    context.close()
    return told


def hits(browser, site: Path, word: str) -> list[str]:
    """Pages that the site's search finds for a word."""
    tab = browser.new_page()
    tab.goto(f"{(site / 'search.html').resolve().as_uri()}?q={word}")
    tab.wait_for_selector("#search-results li a", timeout=20_000)
    # Results come one by one, and no sign of progress stands there before the first.
    tab.wait_for_function("document.querySelector('#search-results').innerText.includes('Search finished')")
    found = tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    tab.close()
    return [urlsplit(url).path for url in found]
