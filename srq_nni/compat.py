"""The shims that BasicSR 1.4.2 needs on current torch and torchvision, in one place.

``prepare()`` must run before the first ``import basicsr``; ``patch_pipelines()`` after it. Neither touches
BasicSR's files. The numbers S1-S6 name the symptom:

S1  ``torchvision.transforms.functional_tensor`` is gone: every import of basicsr fails.
S2  resuming on a machine without a GPU asks for the CUDA device.
S3  ``--auto_resume`` looks below the working directory, not below ``root_path``.
S4  ``torch.distributed.launch`` passes ``--local-rank``, BasicSR knows ``--local_rank``.
S6  ``scipy.ndimage.filters`` is gone in SciPy 2.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from srq_nni.errors import CheckpointError


def prepare() -> None:
    """Make ``import basicsr`` work (S1, S6). Safe to call any number of times."""
    _alias_module("torchvision.transforms.functional_tensor", "torchvision.transforms.functional")
    _alias_module("scipy.ndimage.filters", "scipy.ndimage")


def _alias_module(missing: str, source: str) -> None:
    """Register ``missing`` as a module with the public names of ``source``, unless it exists."""
    if missing in sys.modules or importlib.util.find_spec(missing) is not None:
        return
    origin = importlib.import_module(source)
    alias = types.ModuleType(missing)
    alias.__dict__.update({name: value for name, value in vars(origin).items() if not name.startswith("_")})
    sys.modules[missing] = alias


def normalise_argv(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with the launcher's ``--local-rank`` spelt as BasicSR reads it (S4)."""
    return [arg.replace("--local-rank", "--local_rank", 1) if arg.startswith("--local-rank") else arg for arg in argv]


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Find and load the newest training state of ``opt``, on the CPU when there is no GPU (S2, S3).

    A file that cannot be read (the process died while writing it) is passed over for the one before it.
    """
    from basicsr.utils import check_resume, get_root_logger

    if opt["auto_resume"]:
        folder = Path(opt["path"]["training_states"])
        numbered = (path for path in folder.glob("*.state") if path.stem.isdecimal())
        found = sorted(numbered, key=lambda path: int(path.stem), reverse=True)
    else:
        found = [Path(opt["path"]["resume_state"])] if opt["path"].get("resume_state") else []
    device = torch.device("cuda", torch.cuda.current_device()) if opt["num_gpu"] else torch.device("cpu")
    for path in found:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, EOFError, LookupError, OSError, RuntimeError, ValueError) as error:
            if not opt["auto_resume"]:
                raise CheckpointError(
                    f"path: resume_state: training state '{path}' cannot be read "
                    f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); name a whole .state file"
                ) from None
            get_root_logger().warning(f"Training state {path} cannot be read ({error}); trying the one before it.")
            continue
        opt["path"]["resume_state"] = str(path)
        check_resume(opt, state["iter"])
        return state
    return None


def patch_pipelines(loader: type[yaml.SafeLoader]) -> None:
    """Give BasicSR's pipelines our ``load_resume_state`` (S2, S3) and a safe YAML ``loader``.

    BasicSR's own loader runs ``!!python/object`` tags, and its ``--force_yml`` evaluates values.
    """
    import basicsr.train
    import basicsr.utils.options

    basicsr.train.load_resume_state = load_resume_state
    basicsr.utils.options.ordered_yaml = lambda: (loader, yaml.SafeDumper)
