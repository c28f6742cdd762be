"""``python -m supernet.serving`` as a client sees it: one server for all of it."""

import json
import subprocess

import pytest
from test_engine import NATIVE, random_supernet

from supernet.checkpoint import load, save
from supernet.server import ask, running, tokens_of

pytestmark = pytest.mark.slow
PRESETS = "presets:\n  cheap: {placement: GKSG}\n  dear: {placement: FFSF}\n"
CLIENT = """
import json, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
names = [model.id for model in client.models.list()]
ask = dict(prompt=[5, 6, 7, 8], max_tokens=8, temperature=0)
found = {"names": names}
for name, (model, arguments) in json.load(sys.stdin).items():
    extra = {"return_token_ids": True, "ignore_eos": True, **({"vllm_xargs": arguments} if arguments else {})}
    try:
        found[name] = client.completions.create(model=model, extra_body=extra, **ask).choices[0].token_ids
    except openai.BadRequestError as error:
        found[name] = error.message
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def server(vllm, tmp_path_factory):
    """(URL, the model that it serves)."""
    folder = tmp_path_factory.mktemp("served") / "small"
    save(random_supernet(NATIVE), folder)
    (folder / "presets.yaml").write_text(PRESETS)
    options = {"placement": "cheap", "max-model-len": 256, "kv-cache-memory-bytes": 8 << 20}
    with running(vllm[0], folder, folder.parent / "server.log", options) as url:
        yield url, load(folder)


def test_placements_presets_defaults_and_refusals_by_the_openai_client(server, vllm, greedy):
    url, model = server
    asked = {
        "letters": ("small", {"placement": "FSKG"}),
        "preset as an argument": ("small", {"preset": "dear"}),
        "preset in the name": ("small:dear", None),
        "all-FA": ("small:all-FA", None),
        "default": ("small", None),
        "bad letter": ("small", {"placement": "FXFF"}),
        "bad length": ("small", {"placement": "FF"}),
        "no such preset": ("small", {"preset": "none"}),
        "no such name": ("small:none", None),
        "after the bad ones": ("small:cheap", None),
    }
    done = subprocess.run(
        [vllm[0], "-c", CLIENT, f"{url}/v1"], env=vllm[1], input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["names"] == ["small", "small:all-FA", "small:cheap", "small:dear"]
    prompt = [5, 6, 7, 8]
    placements = {"letters": "FSKG", "preset as an argument": "FFSF", "preset in the name": "FFSF", "all-FA": "FFFF"}
    for name, placement in (placements | {"default": "GKSG", "after the bad ones": "GKSG"}).items():
        assert found[name] == greedy(model, placement, prompt, 8), name
    for name, words in (
        ("bad letter", "unknown mixer X: choose from F, S, K, G"),
        ("bad length", "has 2 layers, the model has 4"),
        ("no such preset", "no preset 'none': choose from all-FA, cheap, dear"),
        ("no such name", "no preset 'none': choose from all-FA, cheap, dear"),
    ):
        assert words in found[name] and "Error code: 400" in found[name]


def test_a_client_that_goes_away_harms_nobody(server, greedy):
    url, model = server
    with ask(url, "small", [9, 9], 200, stream=True) as answer:
        answer.readline()
    assert tokens_of(url, "small", [9, 9], 6, {"placement": "SSSS"}) == greedy(model, "SSSS", [9, 9], 6)
