"""Frames are followed however they arrive."""

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from cotenant.gateway.websocket.frames import Frames, close_frame

_FRAMES = st.builds(
    lambda opcode, size, mask: Frame(opcode, bytes(size)).serialize(mask=mask),
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PING]),
    st.sampled_from([0, 1, 125]),
    st.booleans(),
) | st.builds(
    lambda size, mask: Frame(Opcode.BINARY, bytes(size)).serialize(mask=mask),
    st.sampled_from([126, 65_535, 65_536]),
    st.booleans(),
)


@settings(max_examples=15)
@given(st.lists(_FRAMES, max_size=4), st.data())
def test_a_boundary_is_seen_after_each_frame_and_nowhere_else(
    frames: list[bytes], data: st.DataObject
) -> None:
    ends = {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    stream, seen, at = b"".join(frames), Frames(), 0
    while at < len(stream):
        step = data.draw(st.integers(1, min(len(stream) - at, 40_000)))
        seen.feed(stream[at : at + step])
        at += step
        assert seen.at_boundary == (at in ends)
    assert not seen.is_closing


def test_a_close_is_seen_and_a_long_reason_is_cut_between_characters() -> None:
    seen = Frames()
    frame = close_frame(1001, "é" * 100)
    seen.feed(frame)
    assert seen.is_closing
    assert seen.at_boundary
    assert Close.parse(frame[2:]) == Close(1001, "é" * 61)
