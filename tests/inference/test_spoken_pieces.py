"""Transcripts as CTC hears them, in the scripts of the world."""

import unicodedata

import pytest
from audiollm.inference.spoken_pieces import spoken_form


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("मेरी हिन्दी अच्छी है।", "मेरी हिन्दी अच्छी है"),
        ("நான் நலம்!", "நான் நலம்"),
        ("สวัสดีครับ", "สวัสดีครับ"),
        (unicodedata.normalize("NFD", "José, Ángel?"), "josé ángel"),
        ("Don\u2019t “stop” a_b", "don't stop a b"),
        ("3 of 12", "three of 12"),
    ],
)
def test_letters_keep_their_marks(written: str, spoken: str) -> None:
    assert spoken_form(written) == spoken
