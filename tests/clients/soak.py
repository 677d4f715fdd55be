"""Clients that misbehave against `keyfold serve` on a real model, and whether its memory stays flat.

    python tests/clients/soak.py --keyfold target/release/keyfold --model DIR --seconds 600 --out FOLDER

Clients leave in the middle, read slowly, send halves of requests, noise, wrong bodies and prompts that are too long, and now and
then what they should, whose text must be the same every time. Writes FOLDER/soak.json: resident memory every few seconds,
counts of what was done and answered. Fails when memory grows, a page is lost, a status is wrong or the server ends.
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time
import urllib.request

WRONG = [
    b'{"prompt": 5}', b'{"prompt": "\xff\xfe"}', b'{"prompt": [99999999]}', b'{"prompt": "a", "n": "many"}', b"[[[[[[[[", b"null", b"",
    b'{"prompt": "a", "temperature": 1e400}', b'{"prompt": "a", "max_tokens": -5}', b'{"prompt": "a", "repetition_penalty": 0}',
    b'{"prompt": "a", "logit_bias": {"99999999": 1}}', b'{"prompt": "a", "stop": [' + b'"x",' * 40 + b'"x"]}', b'{"messages": [], "prompt": "a"}',
]
PROMPTS = ["Once upon a time", "The capital of France is", "def add(a, b):", "In the beginning, " * 20, "1, 2, 3, " * 60]


class Soak:
    def __init__(self, url, seed):
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        self.dice = random.Random(seed)
        self.counts = collections.Counter()
        self.texts = {}
        self.wrong = []
        self.over = False

    def head(self, path, length, more=""):
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n".encode()

    async def open(self, **options):
        return await asyncio.open_connection(self.host, self.port, **options)

    async def answer(self, path, body):
        """Status and body of a whole answer."""
        reader, writer = await self.open()
        writer.write(self.head(path, len(body)) + body)
        text = await asyncio.wait_for(reader.read(), 1200)
        writer.close()
        head, _, rest = text.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        self.counts[f"status {status}"] += 1
        return status, rest

    def good(self, stream):
        body = {"prompt": self.dice.choice(PROMPTS), "max_tokens": self.dice.randrange(1, 100), "stream": stream}
        body |= self.dice.choice([{"temperature": 0}, {"temperature": 1.2, "top_p": 0.9}, {"n": 3}, {"logprobs": 5}, {"repetition_penalty": 1.2},
                                  {"stop": ["the", "\n"]}, {"echo": True, "logprobs": 0, "max_tokens": 1}, {"frequency_penalty": 1.0}])
        return json.dumps(body).encode()

    async def leaves(self):
        reader, writer = await self.open()
        body = self.good(self.dice.random() < 0.7)
        writer.write(self.head("/v1/completions", len(body)) + body)
        try:
            await asyncio.wait_for(reader.read(self.dice.randrange(1, 2000)), self.dice.random() * 3)
        except asyncio.TimeoutError:
            pass
        writer.transport.abort()

    async def reads_slowly(self):
        reader, writer = await self.open(limit=64)
        body = self.good(True)
        writer.write(self.head("/v1/completions", len(body)) + body)
        end = time.monotonic() + self.dice.random() * 20
        while time.monotonic() < end and await reader.read(16):
            await asyncio.sleep(0.05)
        writer.transport.abort()

    async def sends_half(self):
        reader, writer = await self.open()
        whole = self.head("/v1/chat/completions", 500) + b'{"messages": [{"role": "user", "content": "'
        writer.write(whole[: self.dice.randrange(len(whole))])
        await asyncio.sleep(self.dice.random() * 2)
        writer.transport.abort()

    async def sends_noise(self):
        reader, writer = await self.open()
        writer.write(self.dice.randbytes(self.dice.randrange(1, 5000)))
        try:
            await asyncio.wait_for(reader.read(1000), 2)
        except (asyncio.TimeoutError, ConnectionError):
            pass
        writer.transport.abort()

    async def sends_wrong(self):
        body = self.dice.choice(WRONG)
        status, _ = await self.answer(self.dice.choice(["/v1/completions", "/v1/chat/completions"]), body)
        # What only the engine can tell is told when there is room for it.
        if status not in (400, 429):
            self.wrong.append(f"{body!r}: {status}")

    async def asks_too_much(self):
        if self.dice.random() < 0.5:
            body = json.dumps({"prompt": "word " * 20_000}).encode()
            want, (status, _) = (400, 429), await self.answer("/v1/completions", body)
        else:
            reader, writer = await self.open()
            writer.write(self.head("/v1/completions", 10**12))
            line = await asyncio.wait_for(reader.readline(), 1200)
            writer.transport.abort()
            want, status = (413,), int(line.split()[1])
            self.counts[f"status {status}"] += 1
        if status not in want:
            self.wrong.append(f"too much: {status}")

    async def asks_for_json(self):
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}}, "required": ["name", "age"]}
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
        status, rest = await self.answer("/v1/chat/completions", json.dumps(body).encode())
        if status not in (200, 429):
            self.wrong.append(f"json: {status} {rest[:200]!r}")

    async def behaves(self):
        prompt = self.dice.choice(PROMPTS)
        body = json.dumps({"prompt": prompt, "max_tokens": 24, "temperature": 0}).encode()
        status, rest = await self.answer("/v1/completions", body)
        if status == 429:
            return
        text = json.loads(rest)["choices"][0]["text"] if status == 200 else None
        if status != 200 or self.texts.setdefault(prompt, text) != text:
            self.wrong.append(f"{prompt!r}: {status} {text!r}, before {self.texts.get(prompt)!r}")

    async def client(self):
        kinds = [self.leaves] * 4 + [self.reads_slowly, self.sends_half, self.sends_noise, self.asks_too_much, self.asks_for_json] + [self.sends_wrong] * 2 + [self.behaves] * 3
        while not self.over:
            kind = self.dice.choice(kinds)
            self.counts[kind.__name__] += 1
            try:
                await kind()
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.counts[type(error).__name__] += 1


def get(url, path):
    return json.load(urllib.request.urlopen(url + path, timeout=60))


def main():
    options = argparse.ArgumentParser()
    for name in ("keyfold", "model", "out"):
        options.add_argument("--" + name, required=True)
    for name, value in dict(seconds=600, clients=32, seed=0, growth_mib=64).items():
        options.add_argument("--" + name, type=int, default=value)
    o = options.parse_args()
    out = pathlib.Path(o.out)
    out.mkdir(parents=True, exist_ok=True)
    command = [o.keyfold, "serve", o.model, "--port", "0", "--request-timeout", "1200", "--kv-memory", "64MiB", "--context", "2048", "--queue", "16", "--max-running", "16"]
    with open(out / "soak.log", "w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    line = server.stdout.readline()
    if not line.startswith("listening on "):
        sys.exit((out / "soak.log").read_text())
    url = line.split()[-1]
    soak, samples, began = Soak(url, o.seed), [], time.monotonic()

    def memory():
        status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
        value = lambda key: int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])
        # Pages of the model's file come and go as the system likes; they are no memory of the server's own.
        return [round(time.monotonic() - began, 1), value("VmRSS:"), value("RssAnon:"), value("Threads:")]

    async def watch():
        # Counted in steps: time for which the machine had no time for this program is no part of it.
        for _ in range(o.seconds // 5):
            samples.append(memory())
            await asyncio.sleep(5)
        soak.over = True

    async def run():
        await asyncio.gather(watch(), *(soak.client() for _ in range(o.clients)))

    try:
        asyncio.run(run())
        for _ in range(300):
            stats = get(url, "/stats")
            if stats["requests"]["running"] + stats["requests"]["waiting"] == 0:
                break
            time.sleep(0.2)
        samples.append(memory())
    except BaseException:
        server.kill()
        raise
    third = len(samples) // 3
    level = lambda part: statistics.median(sample[2] for sample in part)
    first, last = level(samples[third : 2 * third]) / 1024, level(samples[2 * third :]) / 1024
    server.terminate()
    ended = server.wait(60)
    result = {
        "command": " ".join(["keyfold", *command[1:2], pathlib.Path(o.model).name, *command[3:]]), "seconds": o.seconds, "clients": o.clients,
        "own_memory_mib": {"second_third": round(first, 1), "last_third": round(last, 1), "least": round(min(s[2] for s in samples) / 1024, 1), "most": round(max(s[2] for s in samples) / 1024, 1)},
        "done": dict(sorted(soak.counts.items())), "wrong": soak.wrong[:20], "end_stats": stats, "exit": ended,
        "columns": ["seconds", "rss_kib", "own_kib", "threads"], "samples": samples,
    }
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key not in ("samples", "columns")}, indent=1))
    log = (out / "soak.log").read_text()
    assert "panicked" not in log, "a panic in soak.log"
    assert ended == 0 and not soak.wrong, soak.wrong[:5]
    assert stats["requests"]["running"] == 0 and stats["cache"]["pages_used"] == 0, stats
    assert last < first + o.growth_mib, f"{first:.1f} MiB became {last:.1f}"


main()
