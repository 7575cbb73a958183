"""The key of a server is in no file and in nothing that is printed, whatever the server says back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from neuronym.runs.execute import spelled_out
from neuronym.runs.folders import ROOT
from tests.helpers.faults import places, SECRET, SMALL
from tests.helpers.notebooks import command
from tests.helpers.servers import read, send, serving

KIND = "key of a server, looked for in every file"
SPELLINGS = (SECRET, SECRET.replace("/", "\\/"), SECRET.replace("+", "%2B").replace("/", "%2F"))


def echo(status):
    """A server that repeats the key it was sent, in answers, errors and headers."""

    def handle(request):
        read(request)
        key = request.headers["Authorization"]
        if status == 200:
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            body = {"choices": [{"message": {"content": f"a red {key}"}}], "usage": usage}
        else:
            body = {"error": {"message": f"{key} may not do this"}}
        send(request, status, json.dumps(body), {"X-Key": key, "Retry-After": "0"})

    return handle


def holding(folder):
    """Files that hold the key in any spelling; executed notebooks and transcripts too."""
    found = []
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            found += [file for spelling in SPELLINGS if spelling.encode() in content]
    return found


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_the_key_is_nowhere(status, tmp_path, trials):
    if status not in trials([200, 401], [200, 400, 401, 500]):
        pytest.skip("in the longer form: make faults")
    with serving(echo(status)) as address:
        env = places(tmp_path) | {"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": SECRET}
        given = SMALL["describe_and_dissect"] | {"units": "2", "tries": 1}
        words = [word for name, value in given.items() for word in ("-p", name, value)]
        done = command("describe_and_dissect", *words, **env)
        assert done.returncode == (0 if status == 200 else 1), done.stderr[-600:]
        assert not any(spelling in done.stdout + done.stderr for spelling in SPELLINGS)
        assert not holding(tmp_path)
        if status != 200:
            assert list(tmp_path.glob("results/*/*/notebook.ipynb"))  # with its traceback


def test_a_key_in_the_address_or_of_an_odd_form_is_refused_unseen(tmp_path):
    for variable, value in [
        ("OPENAI_BASE_URL", f"http://user:{SECRET}@127.0.0.1:9/v1"),
        ("OPENAI_API_KEY", f"{SECRET}\nX: y"),
    ]:
        given = SMALL["describe_and_dissect"]
        env = places(tmp_path) | {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", variable: value}
        call = spelled_out("describe_and_dissect", given).split()
        done = subprocess.run(
            [sys.executable, "-m", *call], cwd=ROOT, capture_output=True, text=True, env=os.environ | env
        )
        assert done.returncode != 0 and SECRET not in done.stdout + done.stderr
        assert not holding(tmp_path), holding(tmp_path)
