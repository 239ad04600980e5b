"""The keys of an option file as pydantic models: what a run checks first, and what ``json_schema`` is made from.

The text below each key is its description in the schema. Keys that only BasicSR reads are described as far as they
stand in its own option files; others pass, and ``unknown_keys`` looks at their spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from srq_nni.compression.bounds import RELATIVE_LEARNING_RATE
from srq_nni.compression.options import QuantizationOptions
from srq_nni.errors import OptionError, did_you_mean
from srq_nni.validation import Number, Whole, sentence

PATH_KEYS: dict[str, tuple[type, str]] = {  # beginning of a key of ``path`` -> what its value must be
    "pretrain_network_": (str, "a text"),
    "param_key_": (str, "a text"),
    "strict_load_": (bool, "true or false"),
}
Positive = Annotated[Number, Field(ge=1)]
Rate = Annotated[Number, Field(ge=0)]
Text = Annotated[StrictStr, Field(min_length=1)]


class Block(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Typed(Block):
    type: Text
    """Registered name; the other keys are its arguments."""


class Network(Typed):
    """A network by its registered name; the other keys are its arguments."""


class Backend(Block):
    type: Literal["disk", "lmdb", "memcached"]
    """Where the images lie: files in a folder (disk), or a database."""


class Dataset(Block):
    name: Text
    """Name in the log."""
    type: Text
    """Registered name, such as PairedImageDataset."""
    dataroot_gt: Text | None = None
    """Folder (or lmdb) of the high-resolution images."""
    dataroot_lq: Text | None = None
    """Folder (or lmdb) of the low-resolution images."""
    meta_info_file: Text | None = None
    """Text file with one image name a line."""
    filename_tmpl: Text = "{}"
    """Name of the low-resolution image from that of the high-resolution one, without suffix, for example '{}x4'."""
    io_backend: Backend | None = None
    """How images are stored."""
    gt_size: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Side of the high-resolution training crops in pixels; a multiple of scale."""
    use_hflip: StrictBool | None = None
    """Flip crops at random."""
    use_rot: StrictBool | None = None
    """Rotate crops by 90 degrees at random."""
    use_shuffle: StrictBool | None = None
    """Without effect in BasicSR 1.4.2, which always shuffles."""
    num_worker_per_gpu: Annotated[int, Field(strict=True, ge=0)] | None = None
    """Processes that read images, for each GPU."""
    batch_size_per_gpu: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Crops in a batch, for each GPU."""
    dataset_enlarge_ratio: Positive = 1
    """How often the images are repeated in an epoch."""
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    """Read the next batch meanwhile: with a thread (cpu), or onto the GPU (cuda, wants pin_memory)."""
    pin_memory: StrictBool = False
    """Keep batches in page-locked memory."""


class PathBlock(Block):
    model_config = ConfigDict(
        json_schema_extra={
            "patternProperties": {
                "^(pretrain_network|param_key)_": {"type": ["string", "null"], "minLength": 1},
                "^strict_load_": {"type": ["boolean", "null"]},
            },
            "additionalProperties": False,
        }
    )

    pretrain_network_g: Text | None = None
    """Checkpoint to start from: float weights, or a quantized checkpoint of these bits."""
    pretrain_network_t: Text | None = None
    """Float weights of the teacher: network_t, or network_g without quantizers; for train: skt_opt and distill_opt."""
    param_key_g: Text | None = "params"
    """Where the weights are in the checkpoint: params, params_ema, or ~ for a flat file."""
    param_key_t: Text | None = "params"
    """The same for the teacher's file."""
    strict_load_g: StrictBool | None = True
    """Whether names must match. A QuantSRModel accounts for every key, whatever this says."""
    resume_state: Text | None = None
    """Training state (.state) to go on from; --auto_resume takes the newest one."""
    ignore_resume_networks: list[Any] | None = None
    """Networks that a resumed run does not load again."""

    @model_validator(mode="after")
    def _no_folders(self) -> PathBlock:
        """BasicSR makes a folder of every key that it does not know."""
        for key, value in (self.model_extra or {}).items():
            kind, words = next((kind for start, kind in PATH_KEYS.items() if key.startswith(start)), (None, ""))
            if kind is None:
                near = did_you_mean(key, [*PathBlock.model_fields, *PATH_KEYS])
                raise OptionError(f"path: key '{key}' is not known and would become a folder{near or '; delete it'}")
            if value is not None and (not isinstance(value, kind) or value == ""):
                raise OptionError(f"path: {key}: {value!r} is not allowed; give {words}")
        return self


class Optimizer(Block):
    type: Literal["Adam"]
    """BasicSR 1.4.2 knows Adam alone."""
    lr: Rate
    """Learning rate."""
    weight_decay: Rate = 0
    """L2 penalty."""
    betas: list[Number] | None = None
    """Decay of the two moments, by default [0.9, 0.999]."""


class BoundsOptimizer(BaseModel):
    """The bounds and nothing else: their own learning rate in the optimizer of the network."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    relative_lr: Rate | None = None
    """Learning rate of the bounds in widths of their quantizer, so that features of any scale train alike."""
    lr: Rate | None = None
    """The same in the unit of the activations, as published (0.01 for networks that scale to 255); give one of them."""


class Scheduler(Block):
    type: Literal["MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR"]
    """How the learning rates fall."""
    milestones: list[Positive] | None = None
    """Iterations at which a MultiStepLR multiplies the learning rates with gamma."""
    gamma: Number | None = None
    """That factor, by default 0.1."""
    periods: list[Positive] | None = None
    """Lengths of the cosines of a CosineAnnealingRestartLR in iterations."""
    restarts: list[Whole] | None = None
    """Iterations at which a MultiStepRestartLR starts again, by default [0]."""
    restart_weights: list[Number] | None = None
    """Factors of the learning rates from each restart on, by default [1]."""
    eta_min: Number | None = None
    """Least learning rate of a CosineAnnealingRestartLR, by default 0."""


class Loss(Typed):
    loss_weight: Number = 1
    """Factor of the loss."""


class SKT(Block):
    type: Text
    """SKTLoss."""
    loss_weight: Rate = 1000 / 255
    """The paper's 1000 is for images in [0, 255]; BasicSR's are in [0, 1]."""


class Train(Block):
    total_iter: Positive
    """Iterations of the run; the papers' is 60000."""
    optim_g: Optimizer
    """Optimizer of the network."""
    optim_q: BoundsOptimizer = BoundsOptimizer(relative_lr=RELATIVE_LEARNING_RATE)
    """Learning rate of the bounds (QuantSRModel); with profile: official and if missing, lr: 0.01 as published."""
    scheduler: Scheduler
    """How the learning rates fall, the bounds' included."""
    equalize_iter: Annotated[int, Field(strict=True, ge=0)] = 0
    """Iterations that put the float weights into bases that round better (QuantSRModel), before all others; 0: none."""
    warmup_iter: Number = -1
    """Iterations in which the learning rates rise from 0; -1 for none."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0
    """Keep an average of the weights with this decay, and validate and save it, too; 0 for none."""
    amp: Literal["bfloat16"] | None = None
    """Run the training forward in torch.autocast (QuantSRModel); parameters, bounds and losses stay float32."""
    channels_last: StrictBool = False
    """Keep weights and images in the memory format channels_last (QuantSRModel)."""
    pixel_opt: Loss | None = None
    """Loss between output and truth, such as L1Loss."""
    skt_opt: SKT | None = None
    """Loss between the features of network and teacher (QuantSRModel, path: pretrain_network_t); leave out for none."""
    distill_opt: Loss | None = None
    """Loss between the outputs of network and teacher, such as L1Loss (QuantSRModel); leave out for none."""
    distill_flips: StrictBool = True
    """With distill_opt: the teacher sees its input flipped and transposed at random, and its output is turned back."""
    perceptual_opt: Typed | None = None
    """Loss between the features of VGG; alone or beside pixel_opt."""


class Metric(Typed):
    crop_border: Annotated[int, Field(strict=True, ge=0)] | None = None
    """Pixels cut off at each border before the comparison; the papers cut scale pixels."""
    test_y_channel: StrictBool = False
    """Compare the Y of YCbCr, as the papers do, instead of RGB."""


class Validation(Block):
    val_freq: Positive | None = None
    """Validate after every so many iterations."""
    save_img: StrictBool | None = None
    """Write the images that are made."""
    suffix: Any = None
    """Ending of the names of written images (srq test); ~ takes the name of the run."""
    metrics: dict[str, Metric] | None = None
    """What is measured: a name of your choice, and the metric below it."""
    pbar: StrictBool = False
    """BasicSR's own progress bar, also where there is no terminal."""


class Logger(Block):
    print_freq: Positive | None = None
    """Print losses after every so many iterations."""
    save_checkpoint_freq: Positive | None = None
    """Save network and training state after every so many iterations; --auto_resume goes on from them."""
    use_tb_logger: StrictBool | None = None
    """Write losses, metrics, bounds and gates for TensorBoard."""


class OptionFile(Block):
    """Option file of BasicSR with srq-nni: ``srq train -opt FILE``, ``srq test -opt FILE``."""

    name: Text
    """Name of the run and of its folder."""
    model_type: Text
    """QuantSRModel trains with quantizers; BasicSR's models train as ever."""
    base_model: Text = "SRModel"
    """Which of BasicSR's models QuantSRModel extends, such as SwinIRModel or ESRGANModel."""
    scale: Annotated[int, Field(strict=True, ge=1)] | None = None
    """How many times larger the output is; that of network_g."""
    num_gpu: Annotated[int, Field(strict=True, ge=0)] | Literal["auto"]
    """GPUs, 0 for the CPU, or auto."""
    manual_seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] | None = None
    """Seed of weights, data and gates; drawn at random if missing."""
    quantization: Annotated[QuantizationOptions | None, WrapValidator(lambda block, _: block)] = None
    """What is quantized, how and to how many bits (QuantSRModel)."""
    datasets: dict[str, Dataset]
    """train and val for srq train; test, test_2 .. for srq test."""
    network_g: Network
    """The network, as for float training."""
    network_d: Network | None = None
    """The discriminator of a base_model that has one."""
    network_t: Network | None = None
    """The teacher's network, where it is another than network_g: a larger one of the same scale (QuantSRModel)."""
    path: PathBlock
    """Checkpoints to start from; outputs go to experiments/NAME and results/NAME."""
    train: Train | None = None
    """Schedule and losses (srq train)."""
    val: Validation | None = None
    """Validation while training, or the measurements of srq test."""
    logger: Logger | None = None
    """How often to print and to save (srq train)."""
    dist_params: dict[str, Any] | None = None
    """Arguments of the launcher slurm: backend, port."""
    find_unused_parameters: StrictBool = False
    """For several processes whose network leaves parameters out of a step."""


def check_kinds(opt: Mapping[str, Any]) -> None:
    """Check the value of every key that is described here; missing keys are left to the checks of a run.

    Raises:
        OptionError: one sentence that names the key, what was given and what is allowed.
    """
    try:
        OptionFile.model_validate(opt)
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            if wrong["type"] != "missing":
                raise OptionError(sentence(wrong, OptionFile)) from None
