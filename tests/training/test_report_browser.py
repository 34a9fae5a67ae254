"""The page in a real browser: nothing is loaded, nothing complains, no label covers another."""

from __future__ import annotations

import base64
import hashlib
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest
from markupsafe import escape

from router_training.report_html import render_html

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """
const found = {overlaps: [], outside: [], loads: [], wider: 0, texts: 0};
for (const svg of document.querySelectorAll('svg')) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(
    t => [t.textContent, t.getBoundingClientRect()]);
  found.texts += texts.length;
  texts.forEach(([name, a], i) => {
    if (a.left < frame.left - 1 || a.right > frame.right + 1
        || a.top < frame.top - 1 || a.bottom > frame.bottom + 1) found.outside.push(name);
    for (const [other, b] of texts.slice(i + 1)) {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (width > 1 && height > 3) found.overlaps.push([name, other]);
    }
  });
}
found.loads = performance.getEntriesByType('resource').map(e => e.name);
found.title = document.title;
found.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.replaceChildren();
document.body.textContent = 'FOUND' + JSON.stringify(found) + 'DNUOF';
"""


def probed(page, folder):
    """Load a copy of the page that may run the probe and nothing else; (found, console)."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    rule = str(escape("default-src 'none'; "))
    assert page.count(rule) == 1
    copy = page.replace(rule, rule + str(escape(f"script-src 'sha256-{digest}'; ")))
    copy = copy.replace("</body>", f"<script>{PROBE}</script></body>")
    (folder / "page.html").write_text(copy, encoding="utf-8")
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--no-first-run"),
        *(
            "--enable-logging=stderr",
            "--window-size=1200,900",
            f"--user-data-dir={folder / 'user'}",
        ),
        *("--dump-dom", (folder / "page.html").as_uri()),
    ]
    done = subprocess.run(  # noqa: S603 - the system's browser on our own page
        command, capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"FOUND(.*)DNUOF", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed (apt-get install chromium)")
def test_twenty_models_are_readable_and_nothing_is_loaded(large_report, tmp_path):
    found, console = probed(render_html(large_report), tmp_path)
    assert console == []
    assert found["loads"] == []
    assert found["texts"] > 150
    assert found["overlaps"] == []
    assert found["outside"] == []
    assert found["wider"] <= 0


INJECTED = """
<script>document.title = 'RUN'</script><img src="{url}/i" onerror="document.title = 'RUN'">
<style>@import url({url}/s); body {{ background: url({url}/b) }}</style>
<link rel="stylesheet" href="{url}/l"><iframe src="{url}/f"></iframe>
<object data="{url}/o"></object>
<svg><image href="{url}/g"/><use href="{url}/u#a"/></svg><video src="{url}/v"></video>
<input autofocus onfocus="document.title = 'RUN'">
"""


class Counting(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed (apt-get install chromium)")
def test_what_escaped_escaping_would_load_and_run_nothing(small_report, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        injected = INJECTED.format(url=f"http://127.0.0.1:{server.server_port}")
        page = render_html(small_report, title="as it was")
        found, console = probed(page.replace("<main>", f"<main>{injected}"), tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert server.asked == []
    assert found["title"] == "as it was"
    assert any("Content Security Policy" in line for line in console)
