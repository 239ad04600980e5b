"""NNI's ``BaseModelSpeedup``, the class that every engine of NNI derives from.

``import nni.compression.quantization_speedup`` needs tensorrt and pycuda. The file of the base class needs neither, so
it is loaded alone and under its own name: a later import of the package finds this very class.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

NAME = "nni.compression.quantization_speedup.backend"


def base_model_speedup() -> Any:
    """Return the class, without importing the rest of NNI."""
    if NAME not in sys.modules:
        package = importlib.util.find_spec("nni")
        if package is None or not package.submodule_search_locations:
            raise ImportError("nni 3.0 is not installed; install it with: pip install nni==3.0")
        path = Path(package.submodule_search_locations[0]).joinpath(*NAME.split(".")[1:]).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(NAME, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[NAME] = module
    return sys.modules[NAME].BaseModelSpeedup


BaseModelSpeedup = base_model_speedup()
