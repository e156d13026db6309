"""`cotenant`, whose services have to stay up for SETTLE_S seconds, not for three, to count as well.

Run as a script with the command's arguments.
"""

import os
import sys

from cotenant.cli.main import main
from cotenant.services.compose.orchestrator import ComposeOrchestrator

if __name__ == "__main__":
    defaults = ComposeOrchestrator.__init__.__kwdefaults__
    assert "settle_s" in defaults
    defaults["settle_s"] = float(os.environ["SETTLE_S"])
    sys.exit(main())
