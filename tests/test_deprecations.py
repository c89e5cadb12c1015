"""What is deprecated fails the tests: warnings by the filters in `setup.cfg`, what libraries log by `conftest.py`."""

import logging
import warnings

import pytest


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["audiollm", "audiollm.training.stages"])
def test_a_warning_about_our_code_is_an_error(category: type[Warning], module: str) -> None:
    with pytest.raises(category, match="gone soon"):
        warnings.warn_explicit("gone soon", category, filename="some.py", lineno=1, module=module)


def test_what_a_library_logs_is_noticed(deprecation_notices: list[str]) -> None:
    log = logging.getLogger("transformers.generation.utils")
    log.warning("`old` is deprecated.")
    log.warning("`new` is in use.")
    log.warning("Passing `generation_config` together with arguments=({'min_new_tokens'}) is deprecated.")
    assert deprecation_notices == ["transformers.generation.utils: `old` is deprecated."]
    deprecation_notices.clear()
