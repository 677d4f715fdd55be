"""A client of any server of OpenAI's form, for comparing servers: streams of equal prompts in text, nothing but the standard
library, so that it is no server's own.

    python benchmarks/peers/serve_client.py --url http://127.0.0.1:8080 --model NAME --text FILE --tokenizer tokenizer.json \
        --concurrency 16 --requests 16

Prompts are passages of the text with as many tokens as asked for; each client sends its next request when it has the answer
to its last. Prints JSON: seconds, tokens, milliseconds to the first text and per token after it.
"""

import argparse
import asyncio
import json
import statistics
import time
import urllib.parse


def passages(path, tokenizer, tokens, count, seed):
    """`count` passages of the text, each of exactly `tokens` tokens."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(tokenizer)
    text = open(path, encoding="utf-8").read()
    found, place = [], seed * 100_003 % (len(text) // 2)
    while len(found) < count:
        ids = library.encode(text[place : place + tokens * 12], add_special_tokens=False).ids[:tokens]
        passage = library.decode(ids)
        if len(library.encode(passage, add_special_tokens=False).ids) == tokens:
            found.append(passage)
        place += 1_009 + tokens * 12
        if place + tokens * 12 > len(text):
            place = (place * 7 + 13) % (len(text) // 3)
    return found


async def body_of(reader):
    """The parts of an HTTP answer as they come."""
    status = int((await reader.readline()).split()[1])
    chunked = False
    while (line := (await reader.readline()).strip().lower()):
        chunked |= line.startswith(b"transfer-encoding:") and b"chunked" in line
    if status != 200:
        raise SystemExit(f"the server answered {status}: {await reader.read(2000)}")
    while True:
        if not chunked:
            part = await reader.read(65536)
        else:
            size = int((await reader.readline()).split(b";")[0], 16)
            part = await reader.readexactly(size) if size else b""
            await reader.readline()
        if not part:
            return
        yield part


async def ask(args, prompt):
    """One request: seconds to the first text, to the last, and tokens made."""
    url = urllib.parse.urlsplit(args.url)
    body = {"model": args.model, "prompt": prompt, "max_tokens": args.tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    body = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(head.encode() + body)
    first, made, rest, events = None, None, b"", 0
    async for part in body_of(reader):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if event.get("error"):
                raise SystemExit(f"the stream broke off: {event}")
            if event.get("choices") and event["choices"][0].get("text"):
                last = time.perf_counter() - began
                first = first or last
                events += 1
            made = (event.get("usage") or {}).get("completion_tokens") or made
    writer.close()
    return first, last, made or events


async def measure(args, prompts):
    waiting = iter(prompts)
    samples = []

    async def client():
        for prompt in waiting:
            samples.append(await ask(args, prompt))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(args.concurrency)))
    return samples, time.perf_counter() - began


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--url", required=True)
    options.add_argument("--model", required=True)
    options.add_argument("--text", required=True)
    options.add_argument("--tokenizer", required=True)
    options.add_argument("--label", default="")
    options.add_argument("--concurrency", type=int, default=16)
    options.add_argument("--requests", type=int, default=16)
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    prompts = passages(args.text, args.tokenizer, args.prompt, args.requests + 1, args.seed)
    # Not measured: a server may have something left to prepare.
    asyncio.run(ask(args, prompts.pop()))
    samples, seconds = asyncio.run(measure(args, prompts))
    made = sum(sample[2] for sample in samples)
    each = [1e3 * (last - first) / (count - 1) for first, last, count in samples if count > 1]
    print(json.dumps({
        "label": args.label, "concurrency": args.concurrency, "requests": len(samples), "prompt_tokens": args.prompt,
        "made_tokens": made, "shortest": min(sample[2] for sample in samples), "seconds": round(seconds, 4),
        "made_tokens_per_s": round(made / seconds, 2),
        "ttft_ms_p50": round(1e3 * statistics.median(sample[0] for sample in samples), 2),
        "tpot_ms_p50": round(statistics.median(each), 3),
    }))


main()
