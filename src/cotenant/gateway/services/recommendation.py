"""The body of a response that recommends a strategy. Memory is counted in MB of 2^20 bytes."""

from pydantic import Field

from cotenant.gateway.http.bodies import ResponseModel
from cotenant.gateway.services.schema import AssignmentResponse, Mb
from cotenant.services.model import Strategy


class StrategyScoreResponse(ResponseModel):
    """What a strategy would assign, measured; `points` of each measure make the score, of 100.

    `worst_over_mb` is by how much it overfills a GPU at most, `llm_headroom_mb` what stays free on the LLM's
    GPU, `critical_speed` the speed of critical services as a share of the fastest GPU's, `memory_share` what
    budgets leave of the memory needed, `n_changes` how many containers an apply would recreate.
    """

    strategy: Strategy
    score: float
    fits: bool
    worst_over_mb: Mb = Field(validation_alias="worst_over_bytes")
    llm_headroom_mb: Mb | None = Field(validation_alias="llm_headroom_bytes")
    critical_speed: float | None
    memory_share: float
    n_changes: int
    points: dict[str, float]
    reason: str
    assignments: list[AssignmentResponse]


class RecommendationResponse(ResponseModel):
    """The strategy to use, null if there is none, and the score of each. Nothing is changed.

    `text` says why, `tie` what strategies of the same score have in common. `measured_mb` is what services
    were measured to hold; for the others their stated need counts.
    """

    recommended: Strategy | None
    text: str
    tie: str
    strategies: list[StrategyScoreResponse]
    measured_mb: dict[str, Mb] = Field(validation_alias="measured_bytes")
