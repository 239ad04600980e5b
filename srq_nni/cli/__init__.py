"""The ``srq`` command: thin commands over the library."""
