"""Makes the corpora and dictionaries that fuzzing starts from, out of the fixtures.

    python3 fuzz/seeds.py

writes fuzz/corpus/<target>/ and fuzz/dictionaries/<target>.dict, neither of which is kept in the repository.
"""

import hashlib
import json
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent

# The first byte of inputs that may be changes of a valid file: the rest as it is, changes, changes and a cut.
RAW, CHANGED, CUT = b"\0", b"\1", b"\3"


def seed(target, *parts):
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def dictionary(target, words):
    escape = lambda word: "".join(c if c not in '"\\' and " " <= c <= "~" else "".join(f"\\x{b:02x}" for b in c.encode()) for c in word)
    folder = HERE / "dictionaries"
    folder.mkdir(exist_ok=True)
    words = sorted({word for word in words if 0 < len(word) <= 64})
    (folder / f"{target}.dict").write_text("".join(f'"{escape(word)}"\n' for word in words))


def words_of(value):
    """Keys and texts of a JSON value as they stand in a file."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield json.dumps(key) + ":"
            yield from words_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words_of(inner)
    else:
        yield json.dumps(value)


NUMBERS = ["0", "-1", "1e400", "0.5", "4294967296", "18446744073709551615", "-9223372036854775808", "null", "true", "[]", "{}"]


def configs():
    found = list(NUMBERS)
    for path in sorted(ROOT.glob("fixtures/families/*/config.json")):
        value = json.loads(path.read_text())
        seed("config_json", json.dumps(value))
        found += words_of(value)
    # What the project writes for its own designs.
    for attention in own_attentions():
        value = {
            "architectures": ["KeyfoldForCausalLM"], "model_type": "keyfold", "vocab_size": 16, "hidden_size": 8,
            "num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 8, "attention": attention,
        }
        seed("config_json", json.dumps(value))
        found += words_of(value)
    dictionary("config_json", found)


def own_attentions():
    yield {"kind": "mha", "heads": 2, "head_dim": 4}
    yield {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_dim": 4, "position": "alibi"}
    yield {"kind": "mfa", "heads": 2, "head_dim": 4, "query_rank": 3, "query_norm": False, "position": "none"}
    yield {"kind": "mfa-kr", "heads": 2, "head_dim": 4, "reuse": "gated", "reuse_from": "relative"}
    yield {"kind": "mla", "heads": 2, "kv_lora_rank": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2, "v_head_dim": 4}
    yield {"kind": "tpa", "heads": 2, "head_dim": 4, "key_rank": 2, "rope_theta": 1e4}


def weights():
    for mode in (CHANGED, CUT):
        seed("weights", mode)
        seed("weights", mode, bytes([8, 0, 0, 1]) * 3)
    for path in sorted(ROOT.glob("fixtures/families/*/expected.safetensors")):
        seed("weights", RAW, path.read_bytes())
    headers = [
        {},
        {"__metadata__": {"format": "pt"}},
        {"model.norm.weight": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}},
        {"model.norm.weight": {"dtype": "BF16", "shape": [2**62, 8], "data_offsets": [0, 2**63]}},
        {"model.norm.weight": {"dtype": "F16", "shape": [], "data_offsets": [4, 0]}},
    ]
    for header in headers:
        text = json.dumps(header)
        seed("weights", RAW, struct.pack("<Q", len(text)), text, bytes(32))
    seed("weights", RAW, struct.pack("<Q", 2**40), "{}")
    dictionary("weights", NUMBERS + [word for header in headers for word in words_of(header)] + ['"F64"', '"I64"', '"BOOL"'])


def requests():
    source = (HERE / "fuzz_targets" / "request.rs").read_text()
    valid = [json.loads(text) for text in re.findall(r'r#"(.*?)"#', source)]
    for number, value in enumerate(valid):
        seed("request", bytes([number]), CHANGED)
        seed("request", bytes([number]), RAW, json.dumps(value))
        # Each field alone, and with each other kind of value.
        for key, inner in value.items():
            for other in (inner, 0, -1, 1.5, "x", None, True, [], [[1]], {}, {"5": 1}):
                body = {"prompt": "a", **{key: other}} if number == 0 else {**value, key: other}
                seed("request", bytes([number]), RAW, json.dumps(body))
    dictionary("request", NUMBERS + [word for value in valid for word in words_of(value)] + ['"json_object"', '"repetition_penalty":', '"tokens":'])


BYTE_CHARS = [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255 else None for b in range(256)]
BYTE_CHARS = [c or chr(256 + BYTE_CHARS[:b].count(None)) for b, c in enumerate(BYTE_CHARS)]


def tokenizers():
    """Small tokenizers of the kinds that published models have: byte-level BPE, and BPE over text with byte tokens."""
    special = {"id": 258, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab = {c: b for b, c in enumerate(BYTE_CHARS)} | {"th": 256, "Ġth": 257}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}|\\s+"}, "behavior": "Isolated", "invert": False}
    base = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None, "pre_tokenizer": level,
        "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": [["t", "h"], ["Ġ", "th"]]},
    }
    texts = {f"<0x{b:02X}>": b for b in range(256)} | {"▁": 256, "t": 257, "h": 259, "th": 260, "▁th": 261}
    sentence = base | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [258], "tokens": ["<|endoftext|>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": base["model"] | {"byte_fallback": True, "vocab": texts, "merges": ["t h", "▁ th"]},
    }
    variants = [
        base,
        base | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "Digits", "individual_digits": True}, level | {"use_regex": False}]}},
        base | {"normalizer": {"type": "NFC"}, "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        sentence,
        base | {"model": {"type": "WordLevel", "vocab": {"the": 0, "[UNK]": 1}, "unk_token": "[UNK]"}},
        base | {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["t", -1.0]], "byte_fallback": False}},
        base | {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "t": 1}}},
    ]
    for value in variants:
        seed("tokenizer", json.dumps(value, ensure_ascii=False))
    tiny = [base | {"model": base["model"] | {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}, "added_tokens": [special | {"id": 3}]}]
    for value in tiny:
        seed("tokenizer", json.dumps(value))
    words = [word for value in variants for word in words_of(value)]
    dictionary("tokenizer", NUMBERS + [word for word in words if len(word) > 8 or not word[1:-2].isalnum()])


def runs():
    text = (ROOT / "examples" / "mfa.toml").read_text()
    tables = [text, (ROOT / "tests" / "clients" / "tiny.toml").read_text()]
    for attention in own_attentions():
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in attention.items())
        tables.append(re.sub(r"\[model\.attention\][^\[]*", lambda _: f"[model.attention]\n{lines}\n", text))
    for table in tables:
        seed("run_config", table)
        for change in ("train.steps=2", "model.attention.heads=0", "data.seq_len=99999999999", "train.lr=nan", "model.moe.experts=4", "a.b=c", "=", "train=1"):
            seed("run_config", table, b"\0", change)
    documented = (ROOT / "docs" / "configuration.md").read_text()
    dictionary("run_config", NUMBERS + re.findall(r"`([^`\n]+)`", documented) + re.findall(r"\[[a-z.]+\]", text) + ["\n", "\x00", " = ", "[[", "nan", "inf"])


def changes():
    for target in ("token_cache", "training_state"):
        seed(target, RAW)
        for mode in (CHANGED, CUT):
            seed(target, mode)
            for place in range(0, 160, 8):
                seed(target, mode, bytes([place, 0, 0, 1]))
    state = {"step": 1, "tokens": 8, "seconds": 1.0}
    seed("training_state", RAW, json.dumps(state))
    dictionary("training_state", NUMBERS + list(words_of(state)))


for make in (configs, weights, requests, tokenizers, runs, changes):
    make()
for folder in sorted((HERE / "corpus").iterdir()):
    print(f"{folder.name}: {len(list(folder.iterdir()))} seeds")
