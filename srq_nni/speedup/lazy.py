"""Optional packages: imported where they are used, with the command that installs a missing one."""

from __future__ import annotations

import importlib
from typing import Any

from srq_nni.errors import ExportError


def import_or_explain(module: str, extra: str) -> Any:
    """Return the imported ``module``.

    Raises:
        ExportError: if it is not installed, with the pip command for ``extra``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"the package '{module}' cannot be imported ({error}); install it with: pip install \"srq-nni[{extra}]\""
        ) from error
