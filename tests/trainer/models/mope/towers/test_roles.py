"""Which modality a tower reads."""

from __future__ import annotations

import pytest

from data_shards import DatasetSchema, ModalitySpec
from trainer.models.mope.towers.roles import modality_of
from trainer.models.pretrained.loading.backbone import BackboneError

TITLE = ModalitySpec("title", "text")
NOTES = ModalitySpec("notes", "text", timed=True, horizon=1.0)


def test_a_tower_reads_no_modality_that_a_record_has_several_of() -> None:
    assert modality_of(DatasetSchema("d", (NOTES, TITLE)), "text", None) is TITLE
    with pytest.raises(BackboneError, match=r"has no modality of kind text called notes; it has notes \(timed text\)"):
        modality_of(DatasetSchema("d", (NOTES, TITLE)), "text", "notes")
