"""The commands that train and test one published setting, from the option files of basicsr_configs/.

An epoch of the released code is ``ITERATIONS_AN_EPOCH`` batches, for which DIV2K's images are repeated, whatever their
number is: it is the arithmetic of ``iterations``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cells import PROTOCOL
from published import Setting, settings
from recipes import BEST_OF_LARGER, RECIPES, Recipe
from schedule import in_proportion

from srq_nni.errors import OptionError, did_you_mean, listing
from srq_nni.models.options import read_options

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = Path("basicsr_configs")
IMAGES, REPEATS, BATCH, EPOCHS = 800, 20, 16, 60
GPUS = (1, 2, 4, 8, 16)  # divisors of the batch, which stays that of the papers
STEMS = {"EDSR": "EDSR_M", "RDN": "RDN_B", "SRResNet": "SRResNet_"}
WIRINGS = {"official": "official", "recommended": "paper"}  # recipe -> where its quantizers sit


def iterations() -> int:
    """Return the length of a published training."""
    return IMAGES * REPEATS // BATCH * EPOCHS


def arithmetic() -> str:
    """Return the sentence that says where the number of iterations comes from."""
    epoch = IMAGES * REPEATS // BATCH
    return (
        f"{IMAGES} images of DIV2K x {REPEATS} repeats / {BATCH} a batch = {epoch:,} iterations an epoch; "
        f"x {EPOCHS} epochs = {iterations():,} iterations"
    )


@dataclass(frozen=True)
class Run:
    """One training: a published setting with one recipe.

    Attributes:
        setting: the row of the papers.
        recipe: ``official``, as the released code, or ``recommended``, ours (both in benchmarks/accuracy/recipes.py).
    """

    setting: Setting
    recipe: str

    @property
    def settings(self) -> Recipe:
        """What the recipe sets; the recommended one has the rates of the larger network of the short runs."""
        return RECIPES[BEST_OF_LARGER[self.setting.bits] if self.recipe == "recommended" else self.recipe]

    @property
    def name(self) -> str:
        """Name of the experiment."""
        own = self.setting
        return f"full_{own.method}_{own.network}_x{own.scale}_{own.bits}bit_{self.recipe}"

    def file(self, phase: str) -> Path:
        """Return the option file of ``train`` or ``test``, relative to the repository."""
        own = self.setting
        return CONFIGS / phase / f"{phase}_{own.method}_{STEMS[own.network]}x{own.scale}.yml"

    def model(self, iteration: int) -> str:
        """Return the path of a checkpoint, relative to where the commands run."""
        return f"experiments/{self.name}/models/net_g_{iteration}.pth"

    def quantization(self) -> dict[str, Any]:
        """Return the ``quantization`` block; the official one holds nothing beside its profile that could win."""
        given = self.settings.quantization
        if "profile" in given:
            return {"quantizer": self.setting.method.lower(), "bits": self.setting.bits, **given}
        return {**_block_of(self.file("train")), **given, "bits": self.setting.bits, "wiring": WIRINGS[self.recipe]}

    def training(self, gpus: int) -> list[str]:
        """Return the words of the command that trains, and goes on where it stopped.

        Raises:
            OptionError: if the batch cannot be shared out to so many GPUs.
        """
        if gpus not in GPUS:
            raise OptionError(
                f"--gpus: {gpus} is not allowed; give one of {listing(GPUS)}, so that all together see the published "
                f"batch of {BATCH}"
            )
        words = ["srq", "train", "-opt", str(self.file("train"))]
        if gpus > 1:
            words = ["torchrun", f"--nproc_per_node={gpus}", "-m", "srq_nni.cli.train", "-opt", words[-1]]
            words += ["--launcher", "pytorch"]
        train = self.settings.train
        if train:
            train = in_proportion(train, iterations() / PROTOCOL.iterations)
        changes = {
            "name": self.name,
            "quantization": self.quantization(),
            "datasets:train:batch_size_per_gpu": BATCH // gpus,
            "train:total_iter": iterations(),
            **{f"train:{key}": value for key, value in train.items()},
        }
        return [*words, "--auto_resume", "--force_yml", *overrides(changes)]

    def testing(self) -> list[str]:
        """Return the words of the command that measures the last iteration on all four sets."""
        changes = {
            "name": self.name,
            "quantization": self.quantization(),
            "path:pretrain_network_g": self.model(iterations()),
            "val:save_img": False,
        }
        return ["srq", "test", "-opt", str(self.file("test")), "--force_yml", *overrides(changes)]


@functools.cache
def _block_of(file: Path) -> Mapping[str, Any]:
    """Return the ``quantization`` block of an option file, which is not to be changed."""
    block: Mapping[str, Any] = read_options(REPOSITORY / file)["quantization"]
    return block


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return ``KEY=VALUE`` for ``--force_yml``, each value as YAML in one line."""
    return [f"{key}={_one_line(value)}" for key, value in changes.items()]


def _one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def runs(pattern: str | None = None) -> list[Run]:
    """Return all trainings, or those whose names contain a regular expression.

    Raises:
        OptionError: if it is no regular expression, or there are none.
    """
    every = list(_every_run())
    try:
        chosen = [run for run in every if pattern is None or re.search(pattern, run.name)]
    except re.error as error:
        raise OptionError(f"--only: {pattern!r} is not a pattern ({error}); mend it") from None
    if not chosen:
        near = did_you_mean(pattern, [run.name for run in every])
        raise OptionError(f"--only: {pattern!r} is in no name of a run, such as '{every[0].name}'; shorten it{near}")
    return chosen


def _every_run() -> Iterator[Run]:
    for setting in settings():
        for recipe in WIRINGS:
            yield Run(setting, recipe)
