"""Where the agent of a machine has its files."""

from dataclasses import dataclass
from pathlib import Path

from cotenant.state_dir import state_dir


@dataclass(frozen=True, slots=True)
class AgentFolder:
    """The folder of a fleet's agent on this machine."""

    path: Path

    @classmethod
    def of(cls, fleet: str) -> "AgentFolder":
        """Return that of a fleet."""
        return cls(state_dir() / "agents" / fleet)

    @property
    def socket(self) -> Path:
        """The Unix socket on which the agent listens."""
        return self.path / "agent.sock"

    @property
    def log(self) -> Path:
        """What the agent writes while it runs, which nobody reads but people."""
        return self.path / "agent.log"
