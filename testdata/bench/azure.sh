#!/bin/bash
# What an initial copy to Azure costs the machine that makes it, against a bare loop of the SDK that sends the same: CPU-seconds
# per GiB, wall time, memory. Both talk to a server of ours that checks each CRC64 and keeps nothing. Quote the ratios, and the
# load that is printed before and after.
#   azure.sh [-n ROUNDS] [-d DATA_MIB] [-p PROFILE]      -p: CPU profiles of both clients, PROFILE.seed and PROFILE.bare
# TMPDIR needs DATA_MIB of space.
set -euo pipefail
rounds=3 data=2048
while getopts n:d:p: o; do case $o in
	n) rounds=$OPTARG ;; d) data=$OPTARG ;; p) export SITREP_SEED_PROFILE=$OPTARG ;; *) exit 2 ;;
esac; done
cd "$(dirname "$0")/../.."
uptime
SITREP_SEED_MIB=$data go test ./internal/replica/pageblob/fastblob -run '^$' -bench SeedCost -benchtime "${rounds}x" -v
uptime
