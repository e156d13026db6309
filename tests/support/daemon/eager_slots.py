"""`cotenant` that saves and restores every slot, whatever it is worth and however long that takes.

The tiny models of tests compute their prompts sooner than any file is worth, and machines differ in speed.
"""

import sys
from collections.abc import Callable

from cotenant.cli.main import main
from cotenant.engines.llama_cpp import slots


def patch_slots(put: Callable[[object, str, object], None]) -> None:
    """Put other limits into the module, which `put` may take back."""
    for name in ("SAVE_WITHIN_S", "RESTORE_WITHIN_S", "_ASK_WITHIN_S"):
        put(slots, name, 60.0)
    for name in ("LEAST_PREFILL_S", "_WORTH"):
        put(slots, name, 0.0)


if __name__ == "__main__":
    patch_slots(setattr)
    sys.exit(main())
