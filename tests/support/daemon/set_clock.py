"""`cotenant` on a machine whose wall clock is set: by as many seconds as the file FAKE_CLOCK says."""

import os
import time
from pathlib import Path

_OFFSET = Path(os.environ["FAKE_CLOCK"])
_true_time = time.time
time.time = lambda: _true_time() + float(_OFFSET.read_text())

if __name__ == "__main__":
    from cotenant.cli.main import main

    raise SystemExit(main())
