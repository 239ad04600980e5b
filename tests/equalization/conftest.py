"""The small float EDSR of the repository on photographs, as searches have it, and a command that must be refused."""

from tests.cli.conftest import refused
from tests.search.conftest import crops

__all__ = ["crops", "refused"]
