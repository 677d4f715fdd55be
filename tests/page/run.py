"""Opens the server's page in headless Chromium: chat, streaming, stopping, a new conversation, the cache's figures, light and
dark, wide and narrow; no error, no request to anywhere else.

usage: run.py --keyfold PATH --model DIR --chromium PATH [--out DIR]
DIR gets a screenshot of each. Needs playwright.
"""
import argparse
import pathlib
import re
import socket
import subprocess
import urllib.request

from playwright.sync_api import expect, sync_playwright

VIEWS = [("light", 1280, 860), ("dark", 1280, 860), ("light", 390, 844)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(page, text):
    page.fill("#input", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:not([disabled])", timeout=30_000)


def ended(page):
    page.wait_for_selector("#stop[disabled]", state="attached", timeout=120_000)


def check(page, at):
    page.goto(at)
    expect(page.locator("#own")).to_contain_text("B")
    page.click("summary")
    page.fill("#max-tokens", "24")
    page.click("summary")
    ask(page, "Name three fruits.")
    ended(page)
    items = page.locator("#messages li")
    assert items.count() == 2, f"{items.count()} messages after one question"
    assert len(items.nth(1).inner_text().split("\n")) > 1, "an answer without text"
    expect(page.locator("#last")).to_have_text(re.compile(r"^[1-9]"))
    assert re.search(r"\d+ free", page.inner_text("#pages-text")), page.inner_text("#pages-text")


def stop_and_reset(page):
    page.click("summary")
    page.fill("#max-tokens", "1000")
    page.click("summary")
    ask(page, "Write a long story about a ship.")
    page.keyboard.press("Escape")
    ended(page)
    page.click("#reset")
    assert page.locator("#messages li").count() == 0, "messages in a new conversation"


def main():
    p = argparse.ArgumentParser()
    for name in ["keyfold", "model", "chromium"]:
        p.add_argument("--" + name, required=True)
    p.add_argument("--out", default=".")
    o = p.parse_args()
    port = free_port()
    at = f"http://127.0.0.1:{port}/"
    command = [o.keyfold, "serve", o.model, "--port", str(port), "--kv-memory", "64MiB"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in server.stdout:
            if "listening" in line:
                break
        urllib.request.urlopen(at + "health", timeout=30).read()
        problems = []
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=o.chromium, args=["--no-sandbox"])
            for scheme, width, height in VIEWS:
                page = browser.new_page(color_scheme=scheme, viewport=dict(width=width, height=height))
                page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
                page.on("pageerror", lambda e: problems.append(str(e)))
                page.on("request", lambda r: None if r.url.startswith(at) else problems.append("asks " + r.url))
                check(page, at)
                page.screenshot(path=pathlib.Path(o.out) / f"page-{scheme}-{width}.png", full_page=width < 500)
                stop_and_reset(page)
            browser.close()
        assert not problems, problems
    finally:
        server.terminate()
        server.wait(30)
    print(f"page: {len(VIEWS)} views in Chromium, without errors")


if __name__ == "__main__":
    main()
