#!/usr/bin/env bash
# The plain multi-node call. Run it on every node, with the same NODES, MASTER and arguments:
#
#   NODES=4 NODE_RANK=0 MASTER=node0:29500 ./torchrun.sh job.yaml --report report.json
#
# NODES      number of nodes (default 1)
# NODE_RANK  this node's number, from 0 (default 0)
# RANKS      ranks on this node (default 8)
# MASTER     host:port of node 0, reachable from all nodes (default localhost:29500)
set -euo pipefail
if [ $# -eq 0 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 2
fi
master=${MASTER:-localhost:29500}
# Each rank reads, copies and hashes in threads of its own: more threads inside torch's copies would only compete.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun \
  --nnodes "${NODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "${RANKS:-8}" \
  --master-addr "${master%:*}" --master-port "${master##*:}" \
  -m pp_export export "$@"
