#!/bin/sh
# Starts Ray on a machine that is not the head, in the foreground:
# deploy/ray/start-node.sh HEAD-ADDRESS:PORT ADDRESS-OF-THIS-MACHINE
set -eu
head=${1:?give the address and port of the head, such as 10.0.0.1:6379}
address=${2:?give the address under which the other machines reach this one}
token=${COTENANT_RAY_TOKEN:-/etc/cotenant/ray-token}
bin=${COTENANT_BIN:-/opt/cotenant/bin}
variables=$("$bin/cotenant" nodes env --token "$token")
eval "$variables"
exec "$bin/ray" start --block --address "$head" --node-ip-address "$address" \
    --node-name "${COTENANT_NODE:-$(uname -n)}" --num-cpus 1 --object-store-memory 80000000 \
    --include-log-monitor=false --disable-usage-stats
