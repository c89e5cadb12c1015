"""Shared parts of tests of `audiollm prepare` as a process: an interpreter that runs it, and a site with LibriSpeech."""

from collections.abc import Iterator

import pytest
from librispeech_archives import librispeech_archives, served
from loopback_site import Site, serving
from prepare_process import Launcher


@pytest.fixture(scope="session")
def launcher(tmp_path_factory) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        launcher = Launcher(tmp_path_factory.mktemp("commands"))
        yield launcher
        launcher.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files = served(librispeech_archives())
        yield site
