"""OpenAI's client for audio and images against one daemon, with a server of ours of that API behind it."""

import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.daemon.api import get
from tests.support.daemon.serving import Serving
from tests.support.engines.media_server import tone
from tests.support.models.vision import png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # of the client's own older calls
]

_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0}}
devices: {{gpus: '24GiB'}}
defaults: {{timeouts: {{transcription: 77s}}}}
models:
  - {{name: talker, kind: speech, <<: &server {{engine: command, model: own, memory: 1GiB,
     command: ['{python}', -m, tests.support.engines.media_server, '{{port}}'],
     env: {{PYTHONPATH: '{root}'}}}}}}
  - {{name: hearer, kind: transcription, <<: *server}}
  - {{name: painter, kind: image, <<: *server}}
  - {{name: all, kind: any, <<: *server}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("media")
    root = Path(__file__).parent.parent
    (folder / "cotenant.yaml").write_text(_CONFIGURATION.format(python=sys.executable, root=root))
    with Serving(["serve", "--config", str(folder / "cotenant.yaml")], folder / "state") as serving:
        serving.address()
        yield serving
        assert serving.terminate() == 0


@pytest.fixture
def client(daemon: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=daemon.address() + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("size", [5, 90_000], ids=["in memory", "on disk"])
def test_what_is_spoken_is_heard(client: openai.OpenAI, size: int) -> None:
    words = "a" * min(size, 4000)
    with client.audio.speech.with_streaming_response.create(
        model="talker", voice="alloy", input=words
    ) as spoken:
        assert spoken.headers["content-type"] == "audio/wav"
        assert spoken.read() == tone(words)
    recording = ("a.wav", io.BytesIO(tone("a" * size)))
    heard = client.audio.transcriptions.create(model="hearer", file=recording)
    assert heard.text == f"{size} letters"
    recording[1].seek(0)
    assert client.audio.translations.create(model="hearer:latest", file=recording).text == heard.text
    recording[1].seek(0)
    events = list(client.audio.transcriptions.create(model="all", file=recording, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]


def test_pictures_are_made_and_changed(client: openai.OpenAI) -> None:
    made = client.images.generate(model="painter", prompt="red", response_format="b64_json")
    assert made.data is not None
    assert base64.b64decode(made.data[0].b64_json or "") == png(255, 0, 0)
    blue = png(0, 0, 255)
    for changed in (
        client.images.edit(model="painter", image=("b.png", blue), prompt="as it is"),
        client.images.create_variation(model="painter", image=("b.png", blue)),
    ):
        assert changed.data is not None
        assert base64.b64decode(changed.data[0].b64_json or "") == blue


def test_texts_are_moderated(client: openai.OpenAI) -> None:
    assert client.moderations.create(model="all", input="a bad text").results[0].flagged
    with pytest.raises(openai.BadRequestError, match="a model for images, which does not support /v1/mod"):
        client.moderations.create(model="painter", input="x")


def test_requests_are_counted(client: openai.OpenAI, daemon: Serving) -> None:
    client.audio.transcriptions.create(model="hearer", file=("a.wav", io.BytesIO(tone("abc"))))
    metrics = get(daemon, "/metrics", as_text=True)
    assert any('model="hearer"' in line and "requests_total" in line for line in metrics.splitlines())


def test_other_paths_of_an_engine_are_reached_below_upstream(client: openai.OpenAI, daemon: Serving) -> None:
    assert get(daemon, "/upstream/talker/moved", as_text=True) == "<h1>mine</h1>"
    whole = client.with_options(base_url=f"{daemon.address()}/upstream/all/v1")
    heard = whole.audio.transcriptions.create(model="own", file=("a.wav", io.BytesIO(tone("abc"))))
    assert heard.text == "3 letters"
