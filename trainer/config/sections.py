"""The typed sections of a run: model, optimiser, training, tracking, cluster.

Every field says what it is and in which unit; the reference page of the recipes is made from these descriptions. The
sections of the data and of the parallel layout live beside what they configure (`data_shards.config`,
`parallel.config`); `trainer.config` composes all of them into one `RunConfig`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from parallel.config import SPREAD_ABOVE, MoEConfig
from trainer.config.encoders import PretrainedConfig
from trainer.config.job_types import FUSEMOE
from trainer.config.section import Section

Probability = Annotated[float, Field(ge=0, lt=1)]


class SeriesEncoderConfig(Section):
    """Irregular series onto the common time grid (UTDE of FuseMoE, appendix E: mTAND and imputation, gated)."""

    irregularity: Literal["utde", "mtand", "imputation"] = Field(
        "utde", description="how irregular times reach the grid: gated mixture of both, attention only, last value only"
    )
    heads: int = Field(4, ge=1, description="learned time embeddings of the attention over observation times")
    time_dim: int = Field(16, ge=2, description="width of one time embedding (one linear part, the others sines)")
    gate: Literal["sample", "bin", "feature"] = Field(
        "feature", description="what the UTDE gate decides on: a whole series, each time bin, each feature of each bin"
    )
    kernel: int = Field(1, ge=1, description="width of the causal convolution over imputed bins, in bins")
    clip: float = Field(5.0, gt=0, description="standardised values are clipped to this many standard deviations")
    statistics: Literal["none", "token", "fine_kernels"] = Field(
        "none",
        description="token = beside its grid a series has one more token, in the last bin, of what it is as a whole: "
        "of each channel the number of values, mean, smallest, largest, first, last, spread, trend, times of first and "
        "last; data need quantiles (packed with format 2); fine_kernels = that, and all tokens also say which shapes "
        "the series is made of, as model.waveform.statistics says it of a signal: each is laid on even times, as many "
        "as its densest channel has values; far better where each channel is read dozens of times",
    )


class TextEncoderConfig(Section):
    """A small transformer over UTF-8 bytes, trained with the rest; a text becomes a few tokens."""

    stride: int = Field(4, ge=1, description="neighbouring bytes that form one position of the sequence")
    layers: int = Field(1, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="attention heads; must divide model.dim")
    tokens: int = Field(4, ge=1, description="tokens made of one text, each by a learned query")
    positions: int | None = Field(
        None,
        ge=1,
        description="learned positions; what lies behind shares the last one; null = as many as the longest text of "
        "the training part has",
    )


class ImageEncoderConfig(Section):
    """Patches of one image, embedded by a small network; the fusion blocks attend over them."""

    network: Literal["patches", "convolutions"] | None = Field(
        None,
        description="how a patch becomes a token: patches = each by itself, by two layers; convolutions = by stages of "
        "residual convolutions that halve the picture until a row is a patch, and see what is around it; null = "
        "convolutions in a new run whose pictures all have at least 3 x 3 pixels, else patches; a run that goes on "
        "keeps its own",
    )
    patch: int = Field(4, ge=1, description="side of a square patch, in pixels; must divide height and width")
    layers: int = Field(1, ge=1, description="residual blocks of each stage of convolutions")


class WaveformEncoderConfig(Section):
    """Evenly sampled signals cut into patches of samples, embedded and averaged into a few tokens."""

    patch: int = Field(16, ge=1, description="samples in one patch")
    tokens: int = Field(8, ge=1, description="tokens made of one waveform, each an equal stretch of its own length")
    statistics: Literal["none", "kernels", "fine_kernels"] = Field(
        "none",
        description="fine_kernels = tokens also say what the whole signal is: in which shares of its time the answers "
        "of 672 fixed kernels of 9 samples, spans of 9 to 1,025, lie beyond nine levels, as MiniRocket counts them, "
        "each standardised by up to 256 training samples that a new model looks at first; far better on few "
        "recordings; kernels = three levels, not standardised, as runs of before have it",
    )


class VectorEncoderConfig(Section):
    """A fixed vector of features becomes a few tokens."""

    tokens: int = Field(1, ge=1, description="tokens made of one vector")
    numbers: Literal["linear", "piecewise"] = Field(
        "linear",
        description="what the network is given of a feature: its value by model.scale, or piecewise: eight steps "
        "between quantiles of the training part, whatever model.scale says; data need quantiles (packed with format 2)",
    )


Irregularity = Literal["tokens", "mtand", "imputation", "utde"]


class ObjectsConfig(Section):
    """Timed texts, pictures, waveforms and vectors: any number in a record, each with its time."""

    irregularity: Irregularity = Field(
        "tokens",
        description="how objects reach the model: tokens = each one's tokens stand for themselves, in the bin of its "
        "time and with an embedding of it; or the objects of a modality together give model.bins tokens: mtand = "
        "attention over their times (to which the time of a single one does not show), imputation = the last one and "
        "its age, utde = gated mixture of both",
    )
    queries: int = Field(
        4,
        ge=1,
        description="learned queries that read the tokens of an object where it becomes one embedding (not: tokens)",
    )
    heads: int = Field(4, ge=1, description="learned time embeddings of the attention over objects' times")
    time_dim: int = Field(16, ge=2, description="width of one time embedding (one linear part, the others sines)")
    gate: Literal["sample", "bin", "feature"] = Field(
        "feature", description="what the gate of utde decides on: all objects, each time bin, each feature of each bin"
    )
    kernel: int = Field(1, ge=1, description="width of the causal convolution over imputed bins, in bins")


class CodesConfig(Section):
    """Symbols of a vocabulary: a learned row of a table for each."""

    irregularity: Irregularity = Field(
        "tokens",
        description="how codes with times reach the model, as model.objects.irregularity has it, with the other keys "
        "of model.objects; tokens = each code is one token",
    )
    tokens: int = Field(4, ge=1, description="tokens made of a record's codes without times, each by a learned query")
    spread_above: int = Field(
        SPREAD_ABOVE,
        ge=0,
        description="a table of more rows than this is spread over the ranks and costs a step only what is looked up; "
        "smaller ones are on every rank",
    )


class HeadConfig(Section):
    """Pooled tokens to the answers of a task."""

    start: Literal["zero", "base"] = Field(
        "zero",
        description="what classes are given before anything is learned: zero = all alike, base = their frequencies in "
        "the training part (alike too where training.class_weighting=balanced). Numbers start at their mean, survival "
        "at its life table",
    )
    members: int = Field(
        1,
        ge=1,
        description="heads of a task that share most weights: each learns for itself, and the mean of their "
        "probabilities is answered; 1 = one plain head",
    )
    skip: Literal["none", "linear"] = Field(
        "none",
        description="linear = what each modality's last tokens say before any fusion is also added to the answer, by "
        "one linear layer that starts at 0 (a wide part beside the deep one, arXiv 1606.07792): what needs no fusion "
        "need not be learned through it",
    )


class ModelConfig(Section):
    """FuseMoE: an encoder per modality kind, fusion blocks of attention and experts, a head per task."""

    dim: int = Field(64, ge=8, multiple_of=8, description="width of a token, D")
    layers: int = Field(2, ge=1, description="fusion blocks")
    heads: int = Field(4, ge=1, description="attention heads of a fusion block; must divide model.dim")
    bins: int = Field(24, ge=1, description="bins of the common time grid, T")
    attention: Literal["auto", "per_modality", "joint", "factorized"] = Field(
        "auto",
        description="who attends to whom within a sample: tokens of one modality, all tokens, or time first and "
        "modalities second; auto = joint up to 8 modalities, factorized above",
    )
    ffn_hidden: int = Field(
        0, ge=0, description="hidden width of a dense feed-forward part after the experts; 0 = none"
    )
    dropout: Probability = Field(0.1, description="dropout after attention, experts and in heads")
    modality_dropout: Probability = Field(
        0.0, description="chance that a present modality of a training sample is hidden; at least one always stays"
    )
    time_dropout: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of its observation window, on average, that is hidden of a training sample: a stretch "
        "anywhere in it, up to twice as long; what is then left of a modality may be nothing, but it was looked for",
    )
    missing_embedding: bool = Field(True, description="one learned token stands for each absent modality")
    pooling: Literal["attention", "mean", "last"] = Field(
        "attention",
        description="tokens of a sample to one vector: learned queries, mean, mean over each modality's last token",
    )
    latents: int = Field(4, ge=1, description="learned queries of attention pooling")
    scale: Literal["standard", "quantile"] = Field(
        "standard",
        description="scale of the values of series, vectors and codes: deviations from the mean, or normal scores by "
        "the training part's quantiles, which few very large values do not squeeze (data packed with format 2 have "
        "them)",
    )
    series: SeriesEncoderConfig = Field(default_factory=SeriesEncoderConfig, description="series encoder")
    text: TextEncoderConfig = Field(default_factory=TextEncoderConfig, description="text encoder")
    image: ImageEncoderConfig = Field(default_factory=ImageEncoderConfig, description="image encoder")
    waveform: WaveformEncoderConfig = Field(default_factory=WaveformEncoderConfig, description="waveform encoder")
    vector: VectorEncoderConfig = Field(default_factory=VectorEncoderConfig, description="vector encoder")
    objects: ObjectsConfig = Field(default_factory=ObjectsConfig, description="timed objects")
    codes: CodesConfig = Field(default_factory=CodesConfig, description="codes")
    head: HeadConfig = Field(default_factory=HeadConfig, description="heads")
    encoders: dict[str, PretrainedConfig] = Field(
        default_factory=dict, description="pretrained encoders, by the name of the modality that each reads"
    )
    moe: MoEConfig = Field(default_factory=MoEConfig, description="experts, gate, router and balance losses")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> ModelConfig:
        for name, heads in {"heads": self.heads, "text.heads": self.text.heads}.items():
            if self.dim % heads:
                raise ValueError(
                    f"model.dim={self.dim} is not divisible by model.{name}={heads}: change one of the two"
                )
        return self


class OptimConfig(Section):
    """AdamW and its learning rate schedule."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[Probability, Probability] = Field((0.9, 0.999), description="decay of Adam's first and second moment")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay; biases, norms and embeddings are exempt")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape after the warm-up")
    warmup: float = Field(0.05, ge=0, description="warm-up: a fraction of all steps below 1, a number of steps from 1")
    min_lr_factor: float = Field(0.05, ge=0, le=1, description="the schedule ends at this fraction of the peak")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient over all parameters; null = never")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is evaluated, tested and exported in "
        "place of the last ones; it reaches about 1 / (1 - decay) steps back; 0 = none",
    )


class EarlyStoppingConfig(Section):
    """Stop when the chosen validation metric no longer improves; also what `keep_best` ranks checkpoints by."""

    metric: str = Field("val/loss", description="name of a logged metric, e.g. val/auroc")
    mode: Literal["min", "max"] | None = Field(
        None, description="whether smaller or larger is better; null = as the metric has it"
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations without improvement before stopping; null = never"
    )


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every: int | None = Field(None, ge=1, description="optimiser steps between checkpoints; null = at each evaluation")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(
        1, ge=0, description="best checkpoints kept, by training.early_stopping.metric; 0 only without a part val"
    )


class TrainingConfig(Section):
    """How long, in what portions, on which tasks."""

    epochs: int = Field(10, ge=1, description="passes over the training part")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps after which the run ends; null = by epochs")
    minutes: float | None = Field(
        None,
        gt=0,
        description="minutes that training may take, evaluations in it and earlier processes of the run included: how "
        "many steps fit is measured after 20 and at each evaluation, and the learning rate falls towards that end; a "
        "run whose first 20 take longer ends among them; epochs and max_steps say the most; the last evaluation and "
        "the test part come on top. Equal recipes then give runs of other lengths; null = no limit",
    )
    batch_size: int = Field(64, ge=1, description="records of one optimiser step, over all workers")
    accumulation: int = Field(1, ge=1, description="micro-batches that one optimiser step is made of")
    deal: Literal["tokens", "records"] = Field(
        "tokens",
        description="what the shares of workers and micro-batches of a step have equally many of; which records a step "
        "takes does not depend on it. Tokens are counted from the shards' indices before the first step",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens that a micro-batch of one worker may hold before a warning says what to set; null = any",
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, dropout and data order")
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="when the validation part is evaluated: each epoch, or a number of optimiser steps"
    )
    eval_batch_size: int | None = Field(None, ge=1, description="records of one evaluation step; null = batch_size")
    gathered_samples: int = Field(
        1 << 22,
        ge=1,
        description="samples of a part whose predictions come to one worker; of a larger part each worker keeps and "
        "writes its own, metrics are merged, and no figures are drawn",
    )
    log_every: int = Field(
        10,
        ge=1,
        description="optimiser steps between progress lines and logged metrics, beside the first and last step",
    )
    tasks: list[str] | None = Field(None, description="tasks of the data's schema to train on; null = all")
    task_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a task's loss, 0 = nothing is learned of it; default 1"
    )
    class_weighting: Literal["none", "balanced"] = Field(
        "none", description="balanced: classes weigh inversely to their frequency in the training part"
    )
    focal: float = Field(
        0.0,
        ge=0,
        description="power of the focal loss of classes and labels: a record that is answered well counts little, "
        "(1 - p) to this power; 0 = all count alike. It changes probabilities: fit a temperature before they are used",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a step whose gradient is not finite: end the run with its records, or skip the step"
    )
    trace_records: bool = Field(
        False, description="write the keys of every step's records to records/ in the run's folder, for audits"
    )
    activation_checkpointing: bool = Field(
        False, description="compute the fusion blocks again in the backward pass instead of keeping their activations"
    )
    compile: bool = Field(
        False, description="compile the dense parts (heads, feed-forward parts) with torch.compile; slow to start"
    )
    profile: int = Field(
        0, ge=0, description="trace this many optimiser steps of rank 0 with torch's profiler, after five; 0 = none"
    )
    storage: str = Field("runs", description="folder or URL under which the run <name>/ is stored")
    lease_s: float = Field(
        60,
        ge=0.5,
        description="seconds after which a run that gives no sign of life may be continued by another process",
    )
    early_stopping: EarlyStoppingConfig = Field(default_factory=EarlyStoppingConfig, description="early stopping")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="checkpoints")

    @field_validator("task_weights")
    @classmethod
    def _towards_the_labels(cls, weights: dict[str, float]) -> dict[str, float]:
        for task, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"training.task_weights.{task}={weight} trains away from the labels or to no number: "
                    "a weight is finite and at least 0"
                )
        return weights

    def task_weight(self, task: str) -> float:
        """Of a task's loss in the whole one."""
        return self.task_weights.get(task, 1.0)


class EvaluationConfig(Section):
    """What `evaluate` looks at."""

    checkpoint: str = Field(min_length=1, description="folder or URL of a checkpoint, or of a run (its best one)")
    of: str = Field(FUSEMOE, description="job that the checkpoint is from")
    part: str = Field("test", description="part of the split that is evaluated")
    drop: list[str] = Field(default_factory=list, description="modalities to hide, as if they had not been recorded")
    missing_curve: bool = Field(
        False, description="also measure without each modality, with 0 to 70 % missing, and with time hidden"
    )
    missing_seeds: int = Field(3, ge=1, description="draws of what is missing, for each rate of the missing curve")
    temperature: bool = Field(False, description="fit a temperature per task on the validation part, and measure it")

    @property
    def writes(self) -> bool:
        """Whether something is added to the run's folder."""
        return self.missing_curve or self.temperature


class TrackingConfig(Section):
    """Where metrics go. Only rank 0 logs."""

    mlflow: bool = Field(True, description="log to MLflow")
    uri: str | None = Field(
        None,
        description="MLflow tracking URI; null = MLFLOW_TRACKING_URI if set, else mlflow.db beside training.storage",
    )
    experiment: str = Field("fleximoe", min_length=1, description="MLflow experiment; runs in one are easy to compare")
    run_id: str | None = Field(None, description="continue this MLflow run; null = the run's own, made when it starts")
    register_as: str | None = Field(
        None, min_length=1, description="registered model that a finished run adds a version to; null = none"
    )
    tags: dict[str, str] = Field(default_factory=dict, description="tags set on the MLflow run")
    json_lines: bool = Field(True, description="write metrics.jsonl into the run's folder")
    tensorboard: bool = Field(
        False, description="also write TensorBoard's event files, into tensorboard/ of the run's folder (an extra)"
    )
    wandb: str | None = Field(
        None,
        min_length=1,
        description="project of Weights & Biases: also write its offline files, into wandb/ of the run's folder (an "
        "extra); nothing is sent before `wandb sync`",
    )
    flush_seconds: float = Field(5.0, gt=0, description="seconds between two batches of metrics sent to MLflow")
    spool: str | None = Field(
        None, description="local folder for what MLflow could not take yet; null = inside the run's folder if local"
    )

    @field_validator("uri")
    @classmethod
    def _usable_uri(cls, uri: str | None) -> str | None:
        scheme, separator, rest = (uri or "").partition("://")
        if uri is not None and (not separator or scheme == "file"):
            raise ValueError(
                f"tracking.uri={uri!r} is a folder, which MLflow no longer writes to: "
                "give a database (sqlite:///mlflow.db) or a server (http://host:5000)"
            )
        if ":" in rest.partition("@")[0] and "@" in rest:
            raise ValueError(
                "tracking.uri holds a password, and recipes are logged: "
                "give it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class ClusterConfig(Section):
    """Where the workers run."""

    address: str | None = Field(
        None, description="Ray to connect to; null = RAY_ADDRESS if set, else a local Ray for this command only"
    )
    use_gpu: Literal["auto"] | bool = Field("auto", description="one GPU per worker; auto = if the cluster has GPUs")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray reserves for one worker")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers to go on with when nodes are lost, and to grow from when they come back, up to "
        "parallel.workers; null = always parallel.workers",
    )
    max_failures: int = Field(3, ge=0, description="restarts from the newest checkpoint after a worker died")
    start_timeout_s: float = Field(180.0, gt=0, description="seconds that workers may take to start")
    stop_timeout_s: float = Field(
        120.0, gt=0, description="seconds that a submitted job may take to write its checkpoint when it is stopped"
    )
    object_store_mb: int = Field(100, ge=80, description="object store of the local Ray, in MiB")
