"""Batches that the tests of this folder share; each is made anew, to change."""

import pytest
import torch
from batches import collate, labelled, mixed_rows


@pytest.fixture
def batch(shared_tiny_model) -> dict[str, torch.Tensor]:
    """Model inputs of [`mixed_rows`], padded on the left."""
    return collate(shared_tiny_model.config, mixed_rows(shared_tiny_model.config))


@pytest.fixture
def supervised(shared_tiny_model) -> dict[str, torch.Tensor]:
    """Model inputs of [`mixed_rows`] with labels on all text, the very first position included, padded on the right."""
    return labelled(shared_tiny_model.config, mixed_rows(shared_tiny_model.config))
