#!/bin/sh
# Starts Ray's head for Cotenant, in the foreground: deploy/ray/start-head.sh ADDRESS-OF-THIS-MACHINE
# The token is a file of random hexadecimal digits that all machines have (docs/nodes.md).
set -eu
address=${1:?give the address under which the other machines reach this one}
token=${COTENANT_RAY_TOKEN:-/etc/cotenant/ray-token}
state=${COTENANT_RAY_STATE:-/var/lib/cotenant}
bin=${COTENANT_BIN:-/opt/cotenant/bin}
mkdir -p "$state/ray-gcs"
variables=$("$bin/cotenant" nodes env --head --token "$token" --storage "$state/ray-gcs")
eval "$variables"
exec "$bin/ray" start --head --block --node-ip-address "$address" --port "${COTENANT_RAY_PORT:-6379}" \
    --node-name "${COTENANT_NODE:-$(uname -n)}" --num-cpus 1 --object-store-memory 80000000 \
    --include-dashboard=false --include-log-monitor=false --disable-usage-stats
