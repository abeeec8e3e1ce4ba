#!/bin/bash
# A run on a Slurm allocation: Ray is started on its nodes, closed by a token of its own, and gone at the end.
#
#   sbatch deploy/slurm.sh icu_physionet2012 name=icu-1 data.url=/shared/icu training.storage=/shared/runs \
#     parallel.workers=16 parallel.expert_parallel=8
#
# Submit from the repository, whose .venv (or the environment that is active) every node reaches. Give the run a name:
# three minutes before the time limit it writes a checkpoint, the job goes back to the queue, and continues there.
#SBATCH --job-name=fleximoe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
[ -f .venv/bin/activate ] && . .venv/bin/activate

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # at the end nothing runs that would have to leave in peace
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
gpus=${SLURM_GPUS_ON_NODE:-0}

# The first node is the head and works too: a node of this kind is too dear to wait. Ports of other jobs are avoided.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))
folder=$(mktemp -d "${TMPDIR:-/tmp}/ray${SLURM_JOB_ID}_XXXX")
cleanup() {
  jobs -p | xargs -r kill 2>/dev/null || true
  wait
  rm -rf "$folder"
}
trap cleanup EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
  ray start --head --block --node-ip-address="$ip" --port="$port" --temp-dir="$folder" --dashboard-host=127.0.0.1 \
  --dashboard-port=$((port + 10000)) --num-gpus="$gpus" &
for _ in $(seq 60); do ray health-check --address "$ip:$port" >/dev/null 2>&1 && break || sleep 2; done
ray health-check --address "$ip:$port"
if [ "${#nodes[@]}" -gt 1 ]; then
  srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" \
    ray start --block --address="$ip:$port" --num-gpus="$gpus" &
fi

RAY_ADDRESS="$ip:$port" python -m launch train "$@" &
driver=$!
trap 'kill -TERM $driver' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ends `wait` before the driver has ended
  code=0
  wait "$driver" || code=$?
done
if [ "$code" = 143 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "$SLURM_JOB_ID" || true # stopped with a checkpoint, as time was up: go on later
fi
exit "$code"
