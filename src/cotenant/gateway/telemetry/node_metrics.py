"""Metrics of the machines of the fleet; there are none without other machines."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from cotenant.domain.decisions import NodeState, NodeStatus


def of_nodes(nodes: Sequence[NodeStatus]) -> Iterator[Metric]:
    """Yield whether each machine answers, and how well; unknown values have no sample."""
    if not nodes:
        return
    up = GaugeMetricFamily("cotenant_node_up", "1 if the machine answers", labels=("node", "launcher"))
    silent = GaugeMetricFamily("cotenant_node_silent_seconds", "Since its last answer", labels=("node",))
    link = GaugeMetricFamily("cotenant_node_link_seconds", "How long its last answer took", labels=("node",))
    text = "How long its engines go on without a daemon"
    lease = GaugeMetricFamily("cotenant_node_lease_seconds", text, labels=("node",))
    for node in nodes:
        up.add_metric((node.name, node.launcher), node.state in (NodeState.READY, NodeState.DRAINED))
        for gauge, value in ((silent, node.silent_s), (link, node.link_s), (lease, node.lease_left_s)):
            if value is not None:
                gauge.add_metric((node.name,), value)
    yield from (up, silent, link, lease)
