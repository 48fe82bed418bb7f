"""`freeze` and `unfreeze`: keep running statistics and parameters of norms as they are."""

from normkit.tools.freeze.run import Freezing, freeze, unfreeze
from normkit.tools.model.frozen import is_frozen

__all__ = ["Freezing", "freeze", "is_frozen", "unfreeze"]
