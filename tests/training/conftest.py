"""A small corpus on disk, a cache over it, and the arguments that train a tiny model on it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from audiollm.corpora.examples import Example, read_examples
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.rows import build_dataset
from runs import command_options, stage_options
from small_corpus import example_rows, write_recordings, write_rows


@dataclass(frozen=True)
class Corpus:
    """Folders of the recordings and of the examples over them."""

    audio_dir: Path
    names: list[str]
    data_path: str

    @property
    def paths(self) -> list[str]:
        return [str(self.audio_dir / name) for name in self.names]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    names = write_recordings(folder / "recordings")
    return Corpus(folder / "recordings", names, write_rows(folder / "data.json", example_rows(names)))


@pytest.fixture
def cache(tiny_model, tiny_processor, tmp_path: Path) -> FeatureCache:
    return FeatureCache(tiny_model, tiny_processor, tmp_path / "features")


@pytest.fixture
def examples(corpus: Corpus) -> list[Example]:
    return read_examples(corpus.data_path, corpus.audio_dir)


@pytest.fixture
def dataset(examples, tiny_processor, cache):
    """The examples as rows to train on, their features in the cache."""
    return build_dataset(examples, tiny_processor, cache, progress=False)


@pytest.fixture(scope="session")
def shared_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the runs of the command share."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def options(corpus: Corpus, tiny_bases: tuple[str, str], shared_features: Path, tmp_path: Path) -> list[str]:
    """The command's options for a short run of the tiny pair into `tmp_path / "run"`."""
    folder = tmp_path / "run"
    return [*command_options(corpus.data_path, corpus, tiny_bases, shared_features, folder), "--max_steps=2"]


@pytest.fixture
def stage(corpus: Corpus, tiny_bases: tuple[str, str], shared_features: Path, tmp_path: Path):
    """Makes the command's options of a stage into `tmp_path / stage`."""
    return lambda name, *extra: stage_options(name, corpus, tiny_bases, shared_features, tmp_path, *extra)
