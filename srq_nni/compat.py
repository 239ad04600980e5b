"""The shims that BasicSR 1.4.2 needs on current torch and torchvision, in one place.

``prepare()`` must run before the first ``import basicsr``; ``patch_options()`` after it. Neither touches
BasicSR's files. The numbers S1-S6 name the symptom; S2, S3 and S5 are cured in ``models`` (resume, cpu_distributed):

S1  ``torchvision.transforms.functional_tensor`` is gone: every import of basicsr fails.
S2  resuming on a machine without a GPU asks for the CUDA device.
S3  ``--auto_resume`` looks below the working directory, not below ``root_path``.
S4  ``torch.distributed.launch`` passes ``--local-rank``, BasicSR knows ``--local_rank``.
S5  several processes need GPUs.
S6  ``scipy.ndimage.filters`` is gone in SciPy 2.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence

import yaml


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


def patch_options(loader: type[yaml.SafeLoader]) -> None:
    """Let BasicSR read its option files with a safe YAML ``loader``.

    BasicSR's own loader runs ``!!python/object`` tags, and its ``--force_yml`` evaluates values.
    """
    import basicsr.utils.options

    basicsr.utils.options.ordered_yaml = lambda: (loader, yaml.SafeDumper)
