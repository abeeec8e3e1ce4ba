"""The page of a server in a real browser: it draws what was answered, lets nobody in, and everybody can read it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from tests.accessible import problems_of_access
from tests.browser import Browser, Page, open_browser
from tests.launch.serving.canned import EVIL, ROW, SCHEMA, Model
from tests.launch.serving.house import TOKEN, Handle, door_at

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with door_at(Handle({"answer": model.answer, "schema": model.schema})) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: Any) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(browser: Browser, url: str, model: Model) -> Page:
    """The page, with the token given."""
    model.sent.clear()
    found = browser.open(f"{url}/")
    found.evaluate("sessionStorage.clear()")
    enter(found, TOKEN)
    until(found, "!$('inside').hidden")
    return found


def enter(page: Page, token: str) -> None:
    page.evaluate(f"$('token').value = {json.dumps(token)}; $('open').click()")


def until(page: Page, condition: str) -> None:
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"still not: {condition}; {page.problems}"
        time.sleep(0.02)


def text(page: Page, selector: str) -> str:
    found: str = page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def asked(page: Page) -> str:
    page.evaluate("$('answer').hidden = true; $('refused').hidden = true; $('ask').click()")
    until(page, "!$('ask').disabled && !($('answer').hidden && $('refused').hidden)")
    return text(page, "#drawn")


def test_the_token_is_asked_for_and_goes_nowhere_but_into_the_header(browser, url):
    page = browser.open(f"{url}/")
    page.evaluate("sessionStorage.clear()")
    assert page.evaluate("$('inside').hidden && $('token').type === 'password'")
    enter(page, "a wrong one")
    until(page, "!$('trouble').hidden")
    assert "token is missing or wrong" in text(page, "#trouble") and page.evaluate("$('inside').hidden")
    enter(page, TOKEN)
    until(page, "!$('inside').hidden")
    assert (
        page.evaluate("$('token').value") == "" and page.evaluate("localStorage.length + document.cookie.length") == 0
    )
    assert page.requests == [f"{url}/", f"{url}/schema", f"{url}/schema"]
    page.load_by("$('leave').click()")
    assert page.evaluate("$('inside').hidden")
    assert page.evaluate("sessionStorage.length") == 0


def test_the_page_may_do_nothing_but_ask_its_own_server(page, url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/") as answer:
        policy, shown = answer.headers["content-security-policy"], answer.read().decode()
    assert "unsafe" not in policy and "*" not in policy and policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy and answer.headers["referrer-policy"] == "no-referrer"
    assert "ward" not in shown and TOKEN not in shown and "://" not in shown.replace("http://www.w3.org/2000/svg", "")
    refused = page.evaluate("fetch('https://example.org/').then(() => 'fetched', error => error.name)")
    assert refused == "TypeError" and any("Content Security Policy" in problem for problem in page.problems)
    page.evaluate("document.body.append(make('script', {}, 'document.title = 7'))")
    assert page.evaluate("document.title") == "ward/3 - fleximoe"


def test_what_is_filled_in_is_what_is_sent_by_form_and_as_json(page, model):
    asked(page)
    assert model.sent == [(SCHEMA["example"], False), (SCHEMA["example"], True)]
    page.evaluate("$('clear').click(); $('key').value = 'k'")
    page.evaluate("$('m-note-there').click(); $('m-note').value = 'fell ill'")
    page.evaluate("$('m-numbers-there').click(); $('m-numbers-1').value = '2.5'")
    asked(page)
    assert model.sent[-1] == ({"key": "k", "numbers": [None, 2.5], "note": "fell ill"}, True)
    page.evaluate("$('by-json').click()")
    assert json.loads(page.evaluate("$('json').value")) == model.sent[-1][0]
    page.evaluate("""$('json').value = '{"key": "j", "vitals": {"times": [1], "channels": ["HR"], "values": [7]}}'""")
    page.evaluate("$('by-form').click()")
    assert page.evaluate("[$('m-vitals-there').checked, $('m-note-there').checked, $('key').value]") == [
        True,
        False,
        "j",
    ]
    asked(page)
    assert model.sent[-1][0] == {"key": "j", "vitals": {"times": [1], "channels": ["HR"], "values": [7]}}
    assert page.problems == []


def test_a_pictures_file_is_sent_in_base64_and_shown(page, model):
    page.evaluate(
        "$('clear').click(); $('m-scan-there').click(); (() => { const files = new DataTransfer(); files.items.add("
        f"new File([Uint8Array.from(atob('{PICTURE}'), c => c.charCodeAt(0))], 'a.png', {{type: 'image/png'}}));"
        "$('m-scan').files = files.files; $('m-scan').dispatchEvent(new Event('change')) })()"
    )
    until(page, "document.querySelector('.preview').naturalWidth === 1")
    asked(page)
    assert model.sent[-1] == ({"scan": PICTURE}, True) and page.problems == []


def test_chances_reasons_and_calibration_are_those_of_the_answer(page):
    drawn = asked(page)
    assert "with a chance of 63.0 %" in drawn and "w7, with a chance of 62.0 %" in drawn and "4.25 days" in drawn
    assert "8 more, with 16.0 % together" in drawn and "at 26.7 days" in drawn and "fever" in drawn
    rows = page.evaluate(
        "[...document.querySelectorAll('section:first-of-type .bars')].map(t => [...t.tBodies[0].rows].map(r => "
        "[r.cells[0].innerText, r.cells[1].innerText, r.querySelector('.bar').getAttribute('width')]))"
    )
    assert rows[0] == [[EVIL, "63.0 %", "63"], ["home", "37.0 %", "37"]]
    assert [row[:2] for row in rows[1]] == [
        ["vitals", "50.0 %"], ["numbers", "30.0 %"], ["drugs", "20.0 %"], ["note", "0.0 %"]
    ]  # fmt: skip
    assert "Absent: scan, voice." in drawn and "3 older ones were not hidden" in drawn
    place = int(ROW["died.probability"] * 15)
    count, true = (SCHEMA["calibration"]["tasks"]["died"][name][place] for name in ("count", "true"))
    assert f"Of the {count} statements on the test part to which the model gave 60 to 67 % for {EVIL}," in drawn
    assert f"{100 * true:.1f} % came true." in drawn and "Expected calibration error 0.0512 over 390" in drawn
    assert "Of this task no calibration is known" in drawn
    dots = page.evaluate("[...document.querySelectorAll('section:first-of-type circle')].map(c => [c.cx, c.cy].map("
                         "x => x.baseVal.value))")  # fmt: skip
    assert dots[3] == pytest.approx([46 + 380 * 3.5 / 15, 214 - 190 * 0.9 * 3.5 / 15])
    assert page.evaluate("document.title") == "ward/3 - fleximoe" and page.problems == []  # no name became markup


def test_several_records_can_be_looked_at_one_by_one(page):
    page.evaluate("$('by-json').click(); $('json').value = '[{}, {}, {}]'")
    asked(page)
    assert page.evaluate("[...$('row').options].map(o => o.text)") == ["s0", "s1", "s2"]


def test_what_is_refused_is_said_and_nothing_old_stays(page):
    asked(page)
    page.evaluate("$('key').value = 'bad'; $('ask').click()")
    until(page, "!$('refused').hidden && !$('ask').disabled")
    assert text(page, "#refused") == f"record bad is no record, {EVIL}" and page.evaluate("$('answer').hidden")
    page.evaluate("$('key').value = ''; $('m-vitals').value = '{'; $('ask').click()")
    until(page, "$('refused').innerText.startsWith('vitals is no JSON')")
    assert page.evaluate("$('m-vitals').getAttribute('aria-invalid')") == "true"


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it_narrow_and_wide_light_and_dark(page, width, scheme, tmp_path: Path):
    page.call(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    page.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    asked(page)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems_of_access(page) == []
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 20_000
