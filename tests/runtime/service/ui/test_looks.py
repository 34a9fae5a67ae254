"""Whoever looks: light and dark, narrow and wide, with a keyboard only."""

from __future__ import annotations

import pytest

SCRIPTED = "scripted/a-model-whose-name-is-much-longer-than-any-column-would-like-it-to-be-v2.5"
SHIFT = 8
FAINT = """(() => {
  const numbers = color => color.match(/[0-9.]+/g).map(Number);
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const found = numbers(getComputedStyle(element).backgroundColor);
      if (found.length < 4 || found[3] === 1) return light(found);
    }
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest('option, optgroup, script')) continue;
    const found = ratio(light(numbers(getComputedStyle(element).color)), ground(element));
    texts.push([found, walker.currentNode.textContent.trim(), 4.5]);
  }
  for (const shape of document.querySelectorAll('rect.value, rect.failed, line.threshold')) {
    if (!shape.checkVisibility()) continue;
    const style = getComputedStyle(shape);
    const color = shape.tagName === 'rect' ? style.fill : style.stroke;
    texts.push([ratio(light(numbers(color)), ground(shape.closest('div'))), shape.outerHTML, 3]);
  }
  for (const control of document.querySelectorAll('textarea, select, button:not([role])')) {
    if (!control.checkVisibility()) continue;
    const edge = light(numbers(getComputedStyle(control).borderTopColor));
    texts.push([ratio(edge, ground(control.parentElement)), control.outerHTML, 3]);
  }
  return {seen: texts.length, faint: texts.filter(([found, , least]) => found < least)};
})()"""
OUTSIDE = """[...document.querySelectorAll('body *')].filter(element => {
  if (element.closest('.scroll table, svg, .skip') || !element.checkVisibility()) return false;
  const box = element.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(element => element.outerHTML.slice(0, 120))"""
ROOM = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def busy(seen_site, upstream):
    upstream.says("An answer")
    body = {"model": SCRIPTED, "messages": [{"role": "user", "content": "Say"}], "stream": True}
    seen_site.http("POST", "/v1/chat/completions", body, seen_site.sent)
    for model in ("auto", "auto:quality", "dead", "dead", "dead"):
        seen_site.chat(model=model, headers=seen_site.sent)
    seen_site.service.store.flush()
    return seen_site


def filled(page, upstream):
    """Fill the playground with a decision, a long name and an answer without a space."""
    upstream.says("unbroken" * 60)
    page.choose("#model", SCRIPTED)
    page.click("#text")
    page.type("What is 17 + 25? " + "unbroken" * 30)
    page.click("#send")
    page.wait("!document.querySelector('#verdict').hidden")
    page.choose("#model", "auto:picky")
    page.click("#explain")
    page.wait("document.querySelectorAll('.candidate').length > 4")
    page.click("#decision summary")
    page.run("document.querySelector('#notice').textContent = 'Something is wrong.'")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everything_can_be_read_and_nothing_sticks_out(busy, let_in, upstream, theme, width):
    page = let_in(width=width, theme=theme)
    filled(page, upstream)
    found = page.run(FAINT)
    assert found["seen"] > 40
    assert found["faint"] == []
    assert (page.run(ROOM), page.run(OUTSIDE)) == (0, [])
    page.click("#tab-dashboard")
    page.wait("document.querySelectorAll('#recent tbody tr').length >= 6")
    found = page.run(FAINT)
    assert found["seen"] > 60
    assert found["faint"] == []
    assert (page.run(ROOM), page.run(OUTSIDE)) == (0, [])
    assert page.complaints == []


def test_light_and_dark_differ(site, new_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    colors = {new_page(f"{site.url}/ui", theme=theme).run(ground) for theme in ("light", "dark")}
    assert len(colors) == 2


def focus_walk(page, steps):
    found = []
    for _ in range(steps):
        page.press("Tab")
        found.append(page.focused())
    return found


def test_tab_goes_through_the_page_in_its_order(seen_site, let_in):
    page = let_in()
    page.run("document.activeElement.blur(), window.getSelection().removeAllRanges()")
    page.run("document.querySelector('.skip').focus()")
    order = focus_walk(page, 7)
    assert order == [
        "tab-playground", "key-forget", "model", "text", "pictures", "send", "explain",
    ]  # fmt: skip
    page.press("Tab", SHIFT)
    assert page.focused() == "send"


def test_what_has_the_focus_is_outlined(seen_site, let_in):
    page = let_in()
    page.run("document.querySelector('.skip').focus()")
    for _ in range(7):
        page.press("Tab")
        style = page.run("getComputedStyle(document.activeElement).outlineStyle")
        width = page.run("getComputedStyle(document.activeElement).outlineWidth")
        assert (style, width) == ("solid", "3px")


def test_the_skip_link_leads_past_the_header(site, new_page):
    page = new_page(f"{site.url}/ui")
    page.press("Tab")
    assert page.focused() == "A"
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0
    page.press("Enter")
    page.wait("document.activeElement.id === 'main'")


@pytest.mark.parametrize(
    ("key", "shown"),
    [("ArrowRight", "dashboard"), ("ArrowLeft", "dashboard"), ("End", "dashboard")],
)
def test_arrow_keys_change_the_tab_and_back(site, new_page, key, shown):
    page = new_page(f"{site.url}/ui")
    page.click("#tab-playground")
    page.press(key)
    assert page.focused() == f"tab-{shown}"
    assert page.run("document.querySelector('#playground').hidden")
    assert page.run("document.querySelector('#tab-dashboard').ariaSelected") == "true"
    assert page.run("document.querySelector('#tab-playground').tabIndex") == -1
    page.press("Home")
    assert page.focused() == "tab-playground"
    assert page.run("document.querySelector('#dashboard').hidden")


def test_every_control_has_a_name(busy, let_in, upstream):
    page = let_in()
    filled(page, upstream)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "checkbox", "tab", "list", "region", "image"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"] and node.get("role", {}).get("value") in roles
    ]
    assert len(named) > 9
    assert [role for role, name in named if not name and role != "list"] == []
