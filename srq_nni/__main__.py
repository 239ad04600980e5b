"""``python -m srq_nni`` is ``srq``."""

from srq_nni.cli.main import main

main()
