"""The page at /: its files, and what a person does with it, in a headless Chromium where there is one."""

from __future__ import annotations

import json
import math
import re
import shutil

import httpx
import pytest
from helpers_for_serving import serving, toy_model

import likely
from likely.audit.review import Criterion, ReviewItem, ReviewQueue
from likely.serving.page import NAMES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# as root there is no sandbox; the rest keeps the browser from asking its maker
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SCHEMA = '{"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"const": 1}}, "required": ["a", "b"]}'


@pytest.fixture(scope="module")
def local(tiny_path):
    with likely.load(str(tiny_path), threads=1) as lm:
        yield lm


@pytest.fixture(scope="module")
def url(tiny_path):
    with likely.load(str(tiny_path), threads=1) as lm, serving(lm) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with api.sync_playwright() as player:
        try:
            chromium = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except api.Error as error:
            pytest.skip(f"chromium does not start here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, url):
    """The page, opened; whatever it asks for, it asks this server, and its scripts raise nothing."""
    context = browser.new_context(viewport={"width": 900, "height": 700}, color_scheme="light")
    opened, asked, errors = context.new_page(), [], []
    opened.set_default_timeout(30_000)
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(url)
    opened.locator("#model", has_text="tiny").wait_for()
    yield opened
    context.close()
    assert errors == []
    assert [address for address in asked if not address.startswith(f"{url}/")] == []


def send(page, question="the cat", **settings):
    page.locator("#settings").evaluate("element => { element.open = true }")
    for name, value in {"max-tokens": "8", "drafter": "none", **settings}.items():
        if name == "drafter":
            page.select_option("#drafter", value)
        else:
            page.fill(f"#{name}", value)
    page.fill("#question", question)
    page.click("#send")
    page.locator("#send:enabled").wait_for()


# --- the files ------------------------------------------------------------------------------------------------------


def test_everything_that_the_page_names_is_there_and_nothing_comes_from_elsewhere():
    with serving(toy_model(), api_key="secret") as url:
        html = httpx.get(f"{url}/")
        assert html.status_code == 200 and html.headers["content-type"].startswith("text/html")
        texts = {"index.html": html.text}
        for name in NAMES[1:]:
            reply = httpx.get(f"{url}/page/{name}")
            assert reply.status_code == 200 and reply.headers["x-content-type-options"] == "nosniff"
            texts[name] = reply.text
        assert httpx.get(f"{url}/page/__init__.py").status_code == 404
        assert httpx.get(f"{url}/page/..%2Fengine.py").status_code == 404
    policy = html.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    named = {
        found for text in texts.values() for found in re.findall(r'(?:from|src=|href=) ?"(?:\./|/page/)(\S+?)"', text)
    }
    assert named == set(NAMES[1:])
    for name, text in texts.items():
        assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=|innerHTML|eval\(", text), name


def test_every_element_that_a_script_looks_for_is_in_the_page():
    from importlib.resources import files

    folder = files("likely.serving.page")
    known = set(re.findall(r'id="([^"]+)"', folder.joinpath("index.html").read_text()))
    scripts = "".join(folder.joinpath(name).read_text() for name in NAMES if name.endswith(".js"))
    asked = set(re.findall(r'(?:\$|getElementById)\("([\w-]+)"\)', scripts))
    assert asked and asked <= known
    labelled = set(re.findall(r'for="([^"]+)"', folder.joinpath("index.html").read_text()))
    assert {"question", "key", "review-reason"} <= labelled


# --- in a browser ---------------------------------------------------------------------------------------------------


def test_an_answer_streams_in_and_each_token_tells_of_itself(page, local):
    send(page)
    expected = local.chat([{"role": "user", "content": "the cat"}], max_tokens=8, temperature=0, top_logprobs=5,
                          entropy=True, stop_repetition=True)  # fmt: skip
    tokens = page.locator(".answer .t")
    assert tokens.count() == len(expected.token_ids)
    assert page.locator(".asked").inner_text() == "the cat"
    tokens.nth(2).hover()
    told = page.locator("#details").inner_text()
    assert f"log-probability {expected.token_logprobs[2]:.3f} nats" in told
    assert f"entropy here {expected.entropies[2]:.3f} nats" in told and "written by the model" in told
    assert page.locator("#details tr").count() == 5
    assert f"log p: {expected.sequence_logprob:.2f} nats" in page.locator(".facts").inner_text()
    levels = [0.9, 0.5, 0.2, 0.05, 0.01]
    for i, logprob in enumerate(expected.token_logprobs):
        level = sum(math.exp(logprob) < least for least in levels)
        assert f"p{level}" in tokens.nth(i).get_attribute("class").split()


def test_the_arrow_keys_go_from_token_to_token(page):
    send(page)
    page.locator(".answer .t").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".answer .t:focus").evaluate("e => [...e.parentElement.children].indexOf(e)") == 2
    assert page.locator("#details").is_visible() and "%" in page.locator(".t:focus").get_attribute("aria-label")
    assert page.locator('.answer .t[tabindex="0"]').count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()


def test_a_guessed_token_is_marked(page):
    send(page, "the the the the", drafter="lookup", **{"max-tokens": "40"})
    marked = page.locator(".answer .t.drafted").count()
    facts = page.locator(".facts").inner_text()
    assert ("guessed" in facts) == (marked > 0)
    if marked:
        page.locator(".answer .t.drafted").first.hover()
        assert "guessed by the drafter (lookup)" in page.locator("#details").inner_text()


def test_answers_stand_side_by_side_with_their_fields_and_one_goes_on(page):
    send(page, "pick", n="2", temperature="1", seed="5", schema=SCHEMA, **{"max-tokens": "40"})
    assert page.locator(".answer").count() == 2 and page.locator(".answer.chosen").count() == 1
    first = page.locator(".fields").first.inner_text()
    assert "/a" in first and "/b" in first and "nothing to choose" in first
    page.get_by_role("button", name="Go on from this one").nth(1).click()
    assert "chosen" in page.locator(".answer").nth(1).get_attribute("class")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "again", n="1", schema="")
    messages = asked.value.post_data_json["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] in page.locator(".answer").nth(1).inner_text()


def test_a_refusal_is_told_and_is_no_part_of_the_conversation(page):
    """Beside it stands who answered, where a threshold was set."""
    why = "confidence .2 is below .9"
    deltas = [
        ({"content": "yes"}, {"answered_by": "bigger", "abstained": False}),
        ({"refusal": why}, {"abstained": True, "why": why}),
    ]
    asked = []

    def reply(route):
        asked.append(json.loads(route.request.post_data)["messages"])
        chunks = [
            {"choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": "stop", **end}]}
            for i, (delta, end) in enumerate(deltas[:2] if len(asked) == 1 else deltas[1:])
        ]
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", reply)
    send(page, "first", n="2")
    facts = page.locator(".facts").all_inner_texts()
    assert "answered by: bigger" in facts[0] and "not given: confidence .2" in facts[1]
    assert page.locator("text=Go on from this one").count() == 0
    send(page, "second", n="1")
    send(page, "third", n="1")
    kept = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"}]
    assert asked[1:] == [[*kept, {"role": "user", "content": each}] for each in ("second", "third")]


def test_complete_colours_the_prompt_when_asked(page, local):
    page.get_by_role("tab", name="Complete").click()
    page.locator("#settings").evaluate("element => { element.open = true }")
    page.check("#echo")
    send(page, "on the")
    assert page.locator(".answer .t.prompt").count() == len(local.tokenizer.encode("on the"))
    expected = local.generate("on the", max_tokens=8, temperature=0, stop_repetition=True)
    assert f"log p: {expected.sequence_logprob:.2f} nats" in page.locator(".facts").inner_text()


def test_stop_ends_a_request_that_is_on_its_way(page):
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    page.fill("#question", "the cat")
    page.click("#send")
    page.locator("#stop:enabled").click()
    page.locator("#status", has_text="Stopped").wait_for()
    page.locator("#send:enabled").wait_for()


def test_an_error_is_told_and_the_question_stays(page):
    send(page, "the cat", **{"max-tokens": "99999"})
    assert "max_tokens" in page.locator("#error").inner_text()
    assert page.input_value("#question") == "the cat" and page.locator(".turn").count() == 0
    send(page, "the cat", schema="{")
    assert "The schema is no JSON" in page.locator("#error").inner_text()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    send(page, "the cat", schema="")
    assert page.locator("#error").inner_text() == "The server cannot be reached."


def test_a_server_with_a_key_asks_for_it(browser):
    with serving(toy_model(), api_key="secret") as url:
        page = browser.new_page()
        page.goto(url)
        for key in ("wrong", "secret"):
            page.locator("#key").fill(key)
            page.get_by_role("button", name="Use it").click()
            if key == "wrong":
                page.locator("#key-form").wait_for()
        page.locator("#model", has_text="toy").wait_for()
        assert page.locator("#key-form").is_hidden()
        page.close()


def test_dark_light_and_narrow(page):
    send(page, n="3", **{"max-tokens": "24"})

    def background():
        return page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")

    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert dark != light
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light" and background() == light
    page.click("#theme")
    assert background() == dark
    for width in (400, 1400):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.locator("html").evaluate("e => e.scrollWidth") <= width


def test_load_is_shown_while_the_page_is_looked_at(page):
    page.locator("#load-running", has_text=re.compile(r"^\d+$")).wait_for()
    page.locator("#load-speed", has_text=re.compile(r"\d")).wait_for()


def test_items_are_judged_with_the_keyboard_and_a_second_person_sees_agreement_at_the_end(browser, tmp_path):
    criteria = (Criterion("relevance", "Same meaning?"), Criterion("diversity", "Other words?"))
    items = [ReviewItem(f"i{n}", {"probe": f"text <b>{n}</b>"}, {"writer": "hidden"}) for n in range(3)]
    path = ReviewQueue.create(tmp_path / "queue.jsonl", criteria, items).path
    with serving(toy_model(), reviews={"queue": path}) as url:
        page = browser.new_page()
        page.set_default_timeout(30_000)

        def begin(name):
            page.goto(f"{url}/#review")
            page.reload()
            page.locator("#review-annotator").fill(name)
            page.keyboard.press("Enter")
            page.locator("#review-item").wait_for()

        begin("anna")
        assert page.locator("#ask").is_hidden() and "text <b>" in page.locator("#review-shown").inner_text()
        assert page.locator("#review-vote").is_disabled()
        page.keyboard.press("3")
        page.keyboard.press("1")
        page.keyboard.press("Backspace")  # a slip is taken back before the vote
        page.keyboard.press("2")
        page.keyboard.press("r")
        page.keyboard.type("well said 1")
        page.keyboard.press("Enter")
        page.locator("#review-count", has_text="1 of 3").wait_for()
        [vote] = ReviewQueue.open(path).votes
        assert (vote.annotator, vote.ratings, vote.reason) == ("anna", {"relevance": 3, "diversity": 2}, "well said 1")
        begin("anna")  # the page was closed: it goes on
        assert page.locator("#review-count").inner_text() == "1 of 3 judged"
        for name in ("anna", "bert"):
            if name == "bert":
                begin("bert")
            left = 2 if name == "anna" else 3
            for judged in range(3 - left + 1, 4):
                assert page.locator("#review-end").is_hidden()
                page.keyboard.press("3")
                page.keyboard.press("2" if judged % 2 else "1")
                page.keyboard.press("Enter")
                page.locator("#review-count", has_text=f"{judged} of 3").wait_for()
            page.locator("#review-end", has_text="Nothing is left").wait_for()
            said = page.locator("#review-end").inner_text()
            assert ("second annotator" in said) == (name == "anna") and ("kappa" in said) == (name == "bert")
        page.close()
    assert len(ReviewQueue.open(path).votes) == 6
