"""Pictures behind URLs: only from configured hosts, only from addresses that were checked."""

from __future__ import annotations

import asyncio
import io
import ssl
import threading

import PIL.Image
import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver

from router_runtime.config import ImageFetchConfig
from router_runtime.errors import QueryError
from router_runtime.images import ImageLimits
from router_runtime.service.pictures import PictureFetcher, is_public, urls_of

PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"
"""Addresses that these tests take for a public and a private one."""


def png(side=4):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Names(AbstractResolver):
    """Answers from a table; a list is answered one by one, as a rebinding server does."""

    def __init__(self, table):
        self.table = {name: list(found) for name, found in table.items()}
        self.asked = []

    async def resolve(self, host, port=0, family=0):
        self.asked.append(host)
        answers = self.table[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            {"hostname": host, "host": a, "port": port, "family": 2, "proto": 0, "flags": 0}
            for a in addresses
        ]

    async def close(self):
        pass


class Site:
    """An HTTPS server on both addresses that counts what each was asked."""

    def __init__(self, folder):
        authority = trustme.CA()
        server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        names = ["pictures.test", "cdn.pictures.test", "evil.test", PUBLIC, PRIVATE]
        authority.issue_cert(*names).configure_cert(server_tls)
        self.tls = ssl.create_default_context()
        authority.configure_trust(self.tls)
        self.asked = []
        self._server_tls = server_tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self):
        async def serve():
            app = web.Application()
            app.router.add_get("/{name:.*}", self._answer)
            runner = web.AppRunner(app)
            await runner.setup()
            first = web.TCPSite(runner, PUBLIC, 0, ssl_context=self._server_tls)
            await first.start()
            self.port = runner.addresses[0][1]
            await web.TCPSite(runner, PRIVATE, self.port, ssl_context=self._server_tls).start()
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(serve())

    async def _answer(self, request):
        self.asked.append((request.transport.get_extra_info("sockname")[0], request.path))
        name = request.match_info["name"]
        if name == "ok.png":
            return web.Response(body=png(), content_type="image/png")
        if name == "text":
            return web.Response(text="root:x:0:0")
        if name == "huge":
            return web.Response(body=b"\x89PNG\r\n\x1a\n" + bytes(300_000))
        if name == "slow":
            await asyncio.sleep(5)
        if name.startswith("to/"):
            raise web.HTTPFound(location=request.query["url"])
        raise web.HTTPNotFound

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    found = Site(tmp_path_factory.mktemp("site"))
    yield found
    found.close()


def fetch(site, *urls, names=None, allowed=lambda address: address == PUBLIC, **settings):
    async def run():
        config = ImageFetchConfig(
            hosts=("pictures.test", "*.pictures.test"), ports=(site.port,), **settings
        )
        fetcher = PictureFetcher(
            config,
            ImageLimits(max_bytes=100_000),
            resolver=names or Names({"pictures.test": [[PUBLIC]], "cdn.pictures.test": [[PUBLIC]]}),
            address_allowed=allowed,
            tls=site.tls,
        )
        try:
            return await fetcher.fetch_all(urls)
        finally:
            await fetcher.aclose()

    site.asked.clear()
    return asyncio.run(run())


def test_a_picture_of_an_allowed_host_is_fetched(site):
    url = f"https://pictures.test:{site.port}/ok.png"
    assert fetch(site, url)[url].data == png()


def test_a_host_below_an_allowed_one_is_allowed_and_others_are_not(site):
    url = f"https://cdn.pictures.test:{site.port}/ok.png"
    assert fetch(site, url)[url].media_type == "image/png"
    for host in ("evil.test", "xpictures.test", "pictures.test.evil.test"):
        with pytest.raises(QueryError, match="not fetched from"):
            fetch(site, f"https://{host}:{site.port}/ok.png")
    assert site.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.test/ok.png",
        "https://user:secret@pictures.test/ok.png",
        "https://pictures.test:22/ok.png",
        "https://pictures.test:99999/ok.png",
        "file:///etc/passwd",
    ],
)
def test_other_schemes_ports_and_users_are_refused(site, url):
    with pytest.raises(QueryError) as caught:
        fetch(site, url)
    assert "secret" not in str(caught.value)


def test_an_allowed_name_that_leads_to_a_private_address_is_not_connected_to(site):
    names = Names({"pictures.test": [[PRIVATE]]})
    with pytest.raises(QueryError, match="leads where it may not"):
        fetch(site, f"https://pictures.test:{site.port}/ok.png", names=names)
    assert site.asked == []


def test_one_private_address_among_several_spoils_the_name(site):
    names = Names({"pictures.test": [[PUBLIC, PRIVATE]]})
    with pytest.raises(QueryError):
        fetch(site, f"https://pictures.test:{site.port}/ok.png", names=names)
    assert site.asked == []


def test_a_name_that_is_rebound_after_the_check_reaches_nothing_private(site):
    names = Names({"pictures.test": [[PUBLIC], [PRIVATE]]})
    url = f"https://pictures.test:{site.port}/ok.png"
    assert fetch(site, url, names=names)[url].data == png()
    assert len(names.asked) == 1  # what was checked is what was connected to
    assert {address for address, _ in site.asked} == {PUBLIC}
    with pytest.raises(QueryError):
        fetch(site, url, names=names)
    assert site.asked == []


@pytest.mark.parametrize(
    "target", ["https://{private}:{port}/ok.png", "http://pictures.test/ok.png", "file:///x"]
)
def test_a_redirect_is_checked_like_a_first_url(site, target):
    target = target.format(private=PRIVATE, port=site.port)
    with pytest.raises(QueryError):
        fetch(site, f"https://pictures.test:{site.port}/to/x?url={target}")
    assert all(path == "/to/x" for _, path in site.asked)


def test_redirects_within_allowed_hosts_are_followed_so_far(site):
    end = f"https://cdn.pictures.test:{site.port}/ok.png"
    first = f"https://pictures.test:{site.port}/to/x?url={end}"
    assert fetch(site, first)[first].data == png()
    with pytest.raises(QueryError, match="redirects over 0 times"):
        fetch(site, first, max_redirects=0)


def test_what_is_no_picture_too_large_slow_or_missing_is_refused(site):
    base = f"https://pictures.test:{site.port}"
    with pytest.raises(QueryError) as caught:
        fetch(site, f"{base}/text")
    assert "root" not in str(caught.value)
    with pytest.raises(QueryError, match="more than 100,000 bytes"):
        fetch(site, f"{base}/huge")
    with pytest.raises(QueryError, match="status 404"):
        fetch(site, f"{base}/none")
    with pytest.raises(QueryError, match=r"within 0\.2 s"):
        fetch(site, f"{base}/slow", timeout_s=0.2)


def test_a_certificate_that_nobody_signed_is_refused(site):
    async def run():
        config = ImageFetchConfig(hosts=("pictures.test",), ports=(site.port,))
        names = Names({"pictures.test": [[PUBLIC]]})
        fetcher = PictureFetcher(
            config, ImageLimits(), resolver=names, address_allowed=lambda address: True
        )
        try:
            await fetcher.fetch_all([f"https://pictures.test:{site.port}/ok.png"])
        finally:
            await fetcher.aclose()

    with pytest.raises(QueryError):
        asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "nonsense",
    ],
)
def test_no_inner_address_is_public_however_it_is_written(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are(address):
    assert is_public(address)


def test_the_urls_of_all_parts_are_found_once():
    part = {"type": "image_url", "image_url": {"url": "https://a.test/1"}}
    other = {"type": "input_image", "image_url": "HTTP://b.test/2"}
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    messages = [{"role": "user", "content": [part, other, part, inline, "x"]}, {"content": "t"}]
    assert urls_of(messages) == ("https://a.test/1", "HTTP://b.test/2")
