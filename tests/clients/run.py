"""Real clients against `keyfold serve`: the openai package, and lm_eval's local-completions.

    python tests/clients/run.py --keyfold target/release/keyfold --model DIR

DIR is a model folder with a tokenizer; conversations are tried where it has a chat template. Where torch and transformers are
installed, lm_eval also runs transformers on the same folder, and both must agree.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

KEY = "a key for tests"


def serve(keyfold, model, folder):
    """Starts the server; the process and its address."""
    keys = pathlib.Path(folder, "keys")
    keys.write_text(KEY + "\n")
    command = [keyfold, "serve", model, "--port", "0", "--kv-memory", "256MiB", "--name", "served"]
    log = open(pathlib.Path(folder, "server.log"), "w")
    server = subprocess.Popen(command + ["--api-key-file", str(keys)], stdout=subprocess.PIPE, stderr=log, text=True)
    line = server.stdout.readline()
    if not line.startswith("listening on "):
        sys.exit(f"the server did not start: {pathlib.Path(folder, 'server.log').read_text()}")
    return server, line.split()[-1]


def check_openai(url, has_template):
    import openai

    client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["served"]
    ask = dict(model="served", prompt="Once upon a time", max_tokens=12, temperature=0)
    whole = client.completions.create(**ask)
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.prompt_tokens > 0
    parts = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    scored = client.completions.create(**ask, logprobs=2, echo=True, n=2)
    assert len(scored.choices) == 2 and scored.choices[0].text == ask["prompt"] + whole.choices[0].text
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens).endswith(whole.choices[0].text)
    if has_template:
        ask = dict(model="served", messages=[{"role": "user", "content": "Hello."}], max_tokens=16, temperature=0)
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        message = whole.choices[0].message
        assert message.role == "assistant" and message.content
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
        text = ""
        for part in client.chat.completions.create(**ask, stream=True):
            text += part.choices[0].delta.content or ""
        assert text == message.content, (text, message.content)
        schema = {
            "type": "object",
            "properties": {"greeting": {"type": "string", "maxLength": 12}},
            "required": ["greeting"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "greeting", "schema": schema}}
        made = client.chat.completions.create(**{**ask, "max_tokens": 100}, response_format=form)
        if made.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(made.choices[0].message.content)["greeting"], str)
    for wrong, error in [
        (dict(model="other", prompt="a"), openai.NotFoundError),
        (dict(model="served", prompt="a", temperature=5), openai.BadRequestError),
        (dict(model="served", prompt="a", suffix="b"), openai.BadRequestError),
        (dict(model="served", prompt=[10**9]), openai.BadRequestError),
    ]:
        try:
            client.completions.create(**wrong)
        except error as found:
            assert found.body["code"] and found.request_id, found
        else:
            raise AssertionError(f"{wrong} was accepted")
    try:
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key was accepted")
    print(f"openai {openai.__version__}: models, completions, streams, log-probabilities, "
          + ("conversations, JSON, " if has_template else "") + "errors")


QUESTIONS = [
    ("The capital of France is", [" Paris", " Berlin", " a cat"], 0),
    ("Two plus two is", [" four", " eleven", " green"], 0),
    ("The opposite of hot is", [" table", " cold", " seven"], 1),
    ("A cat is an", [" animal", " number", " ocean"], 0),
    ("The sun rises in the", [" east", " west", " fridge"], 0),
    ("Water freezes at", [" zero degrees", " one million degrees", " purple"], 0),
]


def write_tasks(folder):
    data = pathlib.Path(folder, "questions.jsonl")
    lines = [dict(question=q, choices=c, answer=a, text=c[a].strip()) for q, c, a in QUESTIONS]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
    pathlib.Path(folder, "choice.yaml").write_text(
        "task: keyfold_choice\noutput_type: multiple_choice\n" + common
        + 'doc_to_choice: "{{choices}}"\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n')
    pathlib.Path(folder, "write.yaml").write_text(
        "task: keyfold_write\noutput_type: generate_until\n" + common
        + 'doc_to_target: "{{text}}"\nmetric_list: [{metric: exact_match}]\n'
        + 'generation_kwargs: {until: ["."], max_gen_toks: 16, do_sample: false, temperature: 0}\n')


def evaluate(folder, model, args):
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=["keyfold_choice", "keyfold_write"], task_manager=tasks,
        bootstrap_iters=0, log_samples=True)


def check_lm_eval(url, model, folder):
    import lm_eval

    write_tasks(folder)
    os.environ["OPENAI_API_KEY"] = KEY
    ours = evaluate(folder, "local-completions", dict(
        model="served", base_url=url + "/v1/completions", tokenizer=model, tokenizer_backend="huggingface",
        num_concurrent=4, max_retries=1))
    scores = {task: {key: value for key, value in result.items() if isinstance(value, float)}
              for task, result in ours["results"].items()}
    print(f"lm_eval {lm_eval.__version__} local-completions: {scores}")
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        print("skipped: torch is not installed, nothing to compare the scores with")
        return
    theirs = evaluate(folder, "hf", dict(pretrained=model, dtype="float32", device="cpu", batch_size=1))
    for task in scores:
        for sample, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert sample["doc"] == other["doc"]
            for mine, his in zip(sample["resps"], other["resps"], strict=True):
                mine, his = mine[0], his[0]
                if isinstance(mine, str):
                    assert mine == his, (mine, his)
                else:
                    assert math.isclose(float(mine[0]), float(his[0]), rel_tol=1e-3, abs_tol=1e-2), (mine, his)
                    assert str(mine[1]) == str(his[1]), (mine, his)
        for key, value in scores[task].items():
            assert value == theirs["results"][task][key], (task, key)
    print("lm_eval: scores, log-likelihoods and texts are those of transformers")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keyfold", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, url = serve(args.keyfold, args.model, folder)
        try:
            source = pathlib.Path(args.model)
            config = source / "tokenizer_config.json"
            has_template = (source / "chat_template.jinja").exists() or (
                config.exists() and json.loads(config.read_text()).get("chat_template") is not None)
            check_openai(url, has_template)
            check_lm_eval(url, args.model, folder)
        finally:
            server.terminate()
            code = server.wait(60)
        assert code == 0, pathlib.Path(folder, "server.log").read_text()


main()
