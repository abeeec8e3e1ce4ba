"""Options of the source mimic4."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_shards.sources.base import SourceOptions

Known = Literal["charttime", "storetime"]


class Mimic4Options(SourceOptions):
    """Options of this source."""

    path: str = Field(description="folder with hosp/, icu/ and, where there are, note/, cxr/ and ecg/")
    task: Literal["48h", "phenotypes"] = Field(
        "48h", description="48h: mortality and discharge from the first 48 hours; phenotypes: 25 diagnoses, whole stays"
    )
    splits: str | None = Field(
        None,
        description="CSV with a column stay_id or subject_id and one column per split (train, val, test, or empty); "
        "with the column of ids alone it lists the test part, and the others are train or val by hash of the patient; "
        "also testset.csv of the MIMIC benchmarks (no header; id, 1 for test or 0); default: all by hash",
    )
    los_death: Literal["admission", "unit"] = Field(
        "admission", description="los_48: which deaths make it 0: all in this admission, or those before the stay ends"
    )
    definitions: str | None = Field(
        None, description="phenotypes: YAML of name -> codes (ICD-9), e.g. hcup_ccs_2015_definitions.yaml"
    )
    icd10: str | None = Field(None, description="phenotypes: CSV with columns icd10cm and icd9cm")
    icd10_several: Literal["first", "all"] = Field(
        "first", description="phenotypes: which equivalents of an ICD-10 code count, the first row of the table or all"
    )
    icd9_zeros: Literal["keep", "restore"] = Field(
        "keep",
        description="phenotypes: ICD-9 codes of a file that has lost the zeros in front: taken as they are, or given "
        "back where only one code can be meant; both counted",
    )
    longest_h: float = Field(240, gt=48, description="phenotypes: hours of a stay that are read at most")
    labs_at: Known = Field(
        "charttime",
        description="when a laboratory value counts: charttime, the specimen was taken (as published benchmarks have "
        "it), or storetime, the result was there",
    )
    notes_at: Known = Field(
        "storetime",
        description="when a report counts: storetime, it was there to be read, or charttime, the picture that it "
        "describes was taken (FuseMoE: its end of the window then sees reports that nobody had written yet)",
    )
    max_notes: int | None = Field(None, ge=1, description="the newest so many reports of a stay are kept (FuseMoE: 5)")
    max_cxr: int | None = Field(None, ge=1, description="the newest so many X-rays")
    max_ecg: int | None = Field(None, ge=1, description="the newest so many ECGs")
    drugs: Literal["all", "given", "ordered", "none"] = Field(
        "all",
        description="codes of the modality drugs: of what was given (hosp/emar, icu/inputevents), of what was ordered "
        "(hosp/prescriptions), of all of these that are there, or none",
    )
    procedures: bool = Field(True, description="codes of icu/procedureevents are the modality procedures")
    history: bool = Field(
        True,
        description="diagnoses and procedures of admissions that ended before the stay are the modality history",
    )
    min_count: int = Field(1, ge=1, description="codes in fewer records of the training part share one place, counted")
    image_side: int = Field(
        64, ge=8, le=512, description="X-rays are made this high and wide, in pixels (FuseMoE: 224)"
    )
    cxr_unusable: Literal["refuse", "drop"] = Field(
        "refuse", description="X-rays whose file is not there or cannot be read: an error, or left out (counted)"
    )
    ecg_step: int = Field(5, ge=1, description="samples (500 Hz) of an ECG that are averaged into one")
    ecg_resample: bool = Field(
        False, description="ECGs of another rate than 500 Hz are resampled (counted), instead of refused"
    )
    ecg_unusable: Literal["refuse", "drop"] = Field(
        "refuse",
        description="ECGs that cannot be read, lack a lead or have another rate: an error, or left out (counted)",
    )
    scratch: str | None = Field(None, description="folder for temporary copies of the rows used; default: the system's")
