"""What a campaign does to the bytes of a file that was whole."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draws a copy with some bits turned, bytes replaced, a part cut out, doubled, or the end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        if not content:
            break
        # Headers are short and lie in front: half of all damage goes there.
        end = draw(st.sampled_from([min(64, len(content)), len(content)]))
        at = draw(st.integers(0, end - 1))
        match draw(st.sampled_from(["bit", "byte", "word", "cut", "double", "end"])):
            case "bit":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                content[at] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
            case "word":
                content[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)]))
            case "cut":
                del content[at : at + draw(st.integers(1, 64))]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 64))]
            case "end":
                del content[at:]
    return bytes(content)
