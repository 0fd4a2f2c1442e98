#!/bin/bash
# One run on two or more machines, started by hand. On each machine, in the same directory of the same code and data:
#
#     scripts/two_machines.sh RANK FIRST PROGRAM OPTIONS...
#
#     first machine:   scripts/two_machines.sh 0 192.168.0.10 trainer_vanilla.py --output_dir Results/two
#     second machine:  scripts/two_machines.sh 1 192.168.0.10 trainer_vanilla.py --output_dir Results/two
#
# RANK is the number of this machine, from 0. FIRST is the address of machine 0, which the others must reach.
# MACHINES (2), PROCESSES on each machine (1) and PORT (29500) can be set in the environment.
#
# Whoever reaches the port can write into the store that the processes meet at: it has no password. Use a network that
# you trust, or a firewall.

set -euo pipefail

if [ $# -lt 3 ] || ! [[ $1 =~ ^[0-9]+$ ]]; then
    echo "Usage: $0 RANK FIRST PROGRAM OPTIONS..., where RANK is 0 on the first machine" >&2
    exit 2
fi
RANK=$1 FIRST=$2
shift 2

exec torchrun \
    --nnodes "${MACHINES:-2}" \
    --nproc-per-node "${PROCESSES:-1}" \
    --node-rank "$RANK" \
    --master-addr "$FIRST" \
    --master-port "${PORT:-29500}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout 110 \
    "$@"
