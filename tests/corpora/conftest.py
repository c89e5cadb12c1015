"""A site with LibriSpeech."""

from collections.abc import Iterator

import pytest
from librispeech_archives import librispeech_archives, served
from loopback_site import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files = served(librispeech_archives())
        yield site
