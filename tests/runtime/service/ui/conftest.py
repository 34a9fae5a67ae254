"""A real browser, driven through the DevTools protocol over a pipe, and a service to look at."""

from __future__ import annotations

import base64
import fcntl
import http.server
import itertools
import json
import os
import select
import shutil
import signal
import threading
import time
from contextlib import ExitStack

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--disable-extensions", "--mute-audio", "--remote-debugging-pipe"),
)
WAIT_S = 20.0
KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    " ": (32, " "),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
}
ALT, CONTROL, SHIFT = 1, 2, 8


class Browser:
    """Chromium; it reads commands at its descriptor 3 and answers at 4, each ended by a null."""

    def __init__(self, folder):
        read_commands, self._out = os.pipe()
        self._in, write_answers = os.pipe()
        ends = (read_commands, write_answers)
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
        self._pid = os.posix_spawn(
            BROWSER,
            [BROWSER, *OPTIONS, f"--user-data-dir={folder}"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs[0], 3),
                (os.POSIX_SPAWN_DUP2, theirs[1], 4),
            ],
        )
        for end in (*ends, *theirs):
            os.close(end)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.pages = {}

    def close(self):
        os.close(self._out)  # which ends it
        for _ in range(500):
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                break
            time.sleep(0.02)
        else:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._in)

    def send(self, method, session=None, **params):
        """Send a command and return its result; events that come meanwhile go to their pages."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._keep(answer)

    def _next(self):
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], WAIT_S)[0], "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _keep(self, event):
        page = self.pages.get(event.get("sessionId"))
        if page is not None:
            page.heard(event["method"], event["params"])

    def page(self, **looks):
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"], context, **looks)
        self.pages[attached["sessionId"]] = page
        page.start()
        return page


class Page:
    """One tab with storage of its own; keeps what it complained of and asked for."""

    def __init__(self, browser, session, context, *, width=1280, height=900, theme="light"):
        self._browser = browser
        self._session = session
        self._context = context
        self._looks = (width, height, theme)
        self.complaints = []
        self.requests = []

    def start(self):
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setScrollbarsHidden", hidden=True)
        self.look(*self._looks)

    def close(self):
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)

    def look(self, width, height=900, theme="light"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def send(self, method, **params):
        return self._browser.send(method, self._session, **params)

    def heard(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """Return the value of an expression, awaited."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script):
        """Wait until an expression is there and not false, and return its value."""
        last = time.monotonic() + WAIT_S
        while (found := self.run(script)) in (None, False, ""):
            assert time.monotonic() < last, f"never: {script}; shown: {self.run(SHOWN)}"
            time.sleep(0.02)
        return found

    def text(self, selector="body"):
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def wait_text(self, selector, part):
        there = f"document.querySelector({json.dumps(selector)})?.innerText.includes"
        self.wait(f"{there}({json.dumps(part)})")
        return self.text(selector)

    def click(self, selector):
        """Click with the mouse on the middle of an element that can be seen."""
        x, y = self.wait(MIDDLE % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key, modifiers=0):
        code, text = KEYS[key]
        name = {" ": "Space"}.get(key, key)
        about = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        kind = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.send("Input.dispatchKeyEvent", **kind, **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def focused(self):
        return self.run("document.activeElement.id || document.activeElement.tagName")

    def put_files(self, selector, *paths):
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def choose(self, selector, value):
        self.run(
            f"(s => {{ s.value = {json.dumps(value)};"
            " s.dispatchEvent(new Event('change', {bubbles: true})) })"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def screenshot(self, path):
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


SHOWN = "document.body.innerText.slice(0, 1500)"
MIDDLE = """(selector => {
  const found = document.querySelector(selector);
  if (!found || found.disabled) return null;
  found.scrollIntoView({block: 'center'});
  const box = found.getBoundingClientRect();
  return box.width ? [box.x + box.width / 2, box.y + box.height / 2] : null;
})(%s)"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def new_page(browser):
    """Return a function that opens a tab; all are closed after the test."""
    with ExitStack() as stack:

        def opened(url=None, *, before="", **looks):
            page = browser.page(**looks)
            stack.callback(page.close)
            page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
            if url is not None:
                page.open(url)
            return page

        yield opened


class Scripted(http.server.BaseHTTPRequestHandler):
    """Streams the pieces of the server's script; at None it waits for the server's gate."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            for piece in self.server.script:
                if piece is None and not self.waited():
                    self.server.left.set()
                    return
                if piece is not None:
                    self.wfile.write(b"data: " + piece.encode() + b"\n\n")
        except OSError:
            self.server.left.set()

    def waited(self):
        """Wait for the gate; False where the other side went away first."""
        for _ in range(2000):
            if self.server.gate.wait(0.01):
                return True
            if select.select([self.connection], [], [], 0)[0]:
                return False
        return False

    def log_message(self, *arguments):
        pass


class Upstream(http.server.ThreadingHTTPServer):
    """A model whose answers the test writes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Scripted)
        self.gate, self.left = threading.Event(), threading.Event()
        self.script = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def says(self, *texts, end="[DONE]"):
        """Set what it says from now on; None among the texts waits for the gate."""
        self.gate.clear()
        self.left.clear()
        pieces = [None if text is None else json.dumps(chunk(text)) for text in texts]
        self.script = [*pieces, end] if end else pieces

    def __exit__(self, *_):
        self.gate.set()
        self.shutdown()
        self.server_close()


def chunk(text):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "model": SCRIPTED, "choices": [choice]}


SCRIPTED = "scripted/a-model-whose-name-is-much-longer-than-any-column-would-like-it-to-be-v2.5"
DEAD = "dead"


@pytest.fixture(scope="module")
def upstream():
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def seen_site(site_maker, upstream, tmp_path_factory):
    """A site with a key, beside the simulated models one that is scripted and one that is dead."""
    from router_runtime.service.keys import create_key

    def edit(content):
        content["policies"]["picky"] = {
            "kind": "cheapest_qualified",
            "thresholds": {},
            "default_threshold": 0.75,
        }
        content["policies"]["thrifty"] = {"kind": "utility", "lambda_per_usd": 100}
        content["direct"] += [
            {"id": name, "price": {"input_mtok": 1, "output_mtok": 2}, "target": target}
            for name, target in (
                (SCRIPTED, {"kind": "compatible", "base_url": upstream.url}),
                (DEAD, {"kind": "compatible", "base_url": "http://127.0.0.1:9/v1"}),
            )
        ]
        content["service"]["breaker"] = {"failures": 2, "rest_s": 600, "max_rest_s": 600}

    with ExitStack() as stack:
        site = site_maker(stack, tmp_path_factory.mktemp("seen"), edit=edit)
        made = create_key(site.service.store.engine, b"pepper-of-the-tests-0123456789", name="ui")
        site.service.keys.refresh()
        site.key, site.key_id = made.key, made.id
        site.sent = {"authorization": f"Bearer {made.key}"}
        yield site


@pytest.fixture
def let_in(seen_site, new_page):
    """Return a function that opens the page and types the key."""

    def opened(**looks):
        page = new_page(f"{seen_site.url}/ui", **looks)
        page.wait("!document.querySelector('#key-form').hidden")
        page.click("#key")
        page.type(seen_site.key)
        page.press("Enter")
        page.wait("!document.querySelector('#key-held').hidden")
        page.complaints.clear()  # of the answer 401 before the key was there
        return page

    return opened
