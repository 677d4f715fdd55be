"use strict";

const $ = (id) => document.getElementById(id);
let messages = [];
let chat = true;
let running = null;

const number = (value) => Math.round(value).toLocaleString("en");

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) {
    value /= 1024;
    unit += 1;
  }
  return (unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)) + " " + units[unit];
}

function headers() {
  const all = { "Content-Type": "application/json" };
  const key = $("key").value.trim();
  if (key) all.Authorization = "Bearer " + key;
  return all;
}

async function explain(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return "the server answered " + response.status;
  }
}

function show(role, text) {
  const item = document.createElement("li");
  item.dataset.role = role;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = role === "user" ? "You" : "Model";
  const body = document.createElement("span");
  body.textContent = text;
  item.append(who, body);
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return body;
}

// The data of server-sent events, one by one.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
      const line = held.slice(0, end);
      held = held.slice(end + 2);
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function request() {
  const body = { stream: true, stream_options: { include_usage: true } };
  const most = $("max-tokens").valueAsNumber;
  if (most >= 1) body.max_tokens = Math.floor(most);
  const temperature = $("temperature").valueAsNumber;
  if (!Number.isNaN(temperature)) body.temperature = temperature;
  if (chat) {
    const system = $("system").value.trim();
    body.messages = system ? [{ role: "system", content: system }, ...messages] : messages;
  } else {
    body.prompt = messages.map((message) => message.content).join("");
  }
  return body;
}

function busy(is) {
  $("send").disabled = is;
  $("stop").disabled = !is;
  $("messages").setAttribute("aria-busy", String(is));
}

async function answer() {
  const control = new AbortController();
  // A new conversation may begin before this answer has ended.
  const own = messages;
  running = control;
  busy(true);
  $("status").textContent = "Answering…";
  const place = show("assistant", "");
  let text = "";
  let usage = null;
  let first = 0;
  const began = performance.now();
  try {
    const path = chat ? "/v1/chat/completions" : "/v1/completions";
    const options = { method: "POST", headers: headers(), body: JSON.stringify(request()), signal: control.signal };
    const response = await fetch(path, options);
    if (!response.ok) throw new Error(await explain(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices[0];
      const piece = choice ? (chat ? choice.delta.content : choice.text) : "";
      if (!piece) continue;
      first = first || performance.now();
      text += piece;
      place.textContent = text;
      const list = $("messages");
      if (list.scrollHeight - list.scrollTop - list.clientHeight < 120) list.scrollTop = list.scrollHeight;
    }
    $("status").textContent = "Done.";
  } catch (error) {
    if (control.signal.aborted) {
      $("status").textContent = "Stopped.";
    } else {
      $("status").textContent = "";
      const note = document.createElement("span");
      note.className = "error";
      note.setAttribute("role", "alert");
      note.textContent = (text ? "\n" : "") + "Error: " + error.message;
      place.after(note);
    }
  }
  if (text) {
    own.push({ role: "assistant", content: text });
  } else {
    const asked = own.pop();
    if (own === messages && asked && !$("input").value) $("input").value = asked.content;
  }
  if (usage && first) {
    const made = usage.completion_tokens;
    const seconds = (performance.now() - first) / 1000;
    const speed = made > 1 && seconds > 0 ? ", " + ((made - 1) / seconds).toFixed(1) + " tok/s" : "";
    const cached = usage.prompt_tokens_details.cached_tokens;
    $("last").textContent =
      number(made) + " tokens" + speed + "; first after " + number(first - began) + " ms, " +
      number(cached) + " of " + number(usage.prompt_tokens) + " prompt tokens cached";
  }
  busy(false);
  running = null;
  $("input").focus();
}

function send() {
  const text = $("input").value;
  if (!text.trim() || running) return;
  $("input").value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  answer();
}

function stop() {
  if (running) running.abort();
}

// The cache.
const history = [];
let before = null;

function draw(stats) {
  const { cache, tokens, requests } = stats;
  chat = stats.chat;
  $("talk-title").textContent = chat ? "Chat" : "Text (this model has no chat template)";
  $("model").textContent = stats.model + ", up to " + number(stats.max_model_len) + " tokens";
  document.title = stats.model + " – Keyfold";
  $("attention").textContent = cache.attention + " attention, cache in " + cache.dtype;
  const share = cache.mha_bytes_per_token > 0 ? cache.bytes_per_token / cache.mha_bytes_per_token : 1;
  $("own-bar").value = share;
  $("own").textContent = bytes(cache.bytes_per_token);
  $("mha").textContent = bytes(cache.mha_bytes_per_token);
  $("saving").textContent = share < 1 ? (100 * share).toFixed(1) + " % of what multi-head attention keeps" : "as much as multi-head attention";
  const free = cache.pages - cache.pages_used - cache.pages_idle;
  const width = (pages) => (100 * pages) / Math.max(cache.pages, 1);
  $("pages-used").setAttribute("width", width(cache.pages_used));
  $("pages-idle").setAttribute("x", width(cache.pages_used));
  $("pages-idle").setAttribute("width", width(cache.pages_idle));
  $("pages-text").textContent =
    number(cache.pages_used) + " in use, " + number(cache.pages_idle) + " kept for later, " + number(free) +
    " free, " + cache.page_size + " tokens each";
  const held = (cache.pages_used + cache.pages_idle) * cache.page_size;
  const used = cache.pages_used * cache.page_size;
  $("bytes").textContent = bytes(used * cache.bytes_per_token) + " (" + bytes(held * cache.bytes_per_token) + " with kept)";
  $("mha-bytes").textContent = bytes(used * cache.mha_bytes_per_token) + " (" + bytes(held * cache.mha_bytes_per_token) + ")";
  const hits = tokens.prompt > 0 ? (100 * tokens.cached) / tokens.prompt : 0;
  $("hits").textContent = number(tokens.cached) + " of " + number(tokens.prompt) + " tokens (" + hits.toFixed(0) + " %)";
  $("requests").textContent = requests.running + " running, " + requests.waiting + " waiting";
  if (before && stats.uptime_s > before.uptime_s && tokens.made >= before.tokens.made) {
    const speed = (tokens.made - before.tokens.made) / (stats.uptime_s - before.uptime_s);
    history.push(speed);
    if (history.length > 60) history.shift();
    $("speed").textContent = speed.toFixed(1) + " tok/s";
    const top = Math.max(...history, 1);
    const points = history.map((value, at) => 2 * (at + 60 - history.length) + "," + (29 - (27 * value) / top).toFixed(2));
    $("line").setAttribute("points", points.join(" "));
    $("history").setAttribute("aria-label", "Tokens per second over the last minute: now " + speed.toFixed(1) + ", at most " + top.toFixed(1));
  }
  before = stats;
}

async function watch() {
  if (!document.hidden) {
    try {
      const response = await fetch("/stats", { headers: headers() });
      if (response.ok) draw(await response.json());
      else $("model").textContent = await explain(response);
    } catch {
      $("model").textContent = "the server cannot be reached";
      before = null;
    }
  }
  setTimeout(watch, 1000);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
$("stop").addEventListener("click", stop);
$("reset").addEventListener("click", () => {
  stop();
  messages = [];
  $("messages").replaceChildren();
  $("status").textContent = "";
  $("input").focus();
});
watch();
