#!/usr/bin/env bash
# Pretrains on GPUs of several nodes, one process a GPU, and starts again whatever fails:
#   sbatch docs/cluster/slurm.sh --config=configs/conic.py --config.run=gs://BUCKET/runs/conic ...
# PYTHON names the interpreter, RESTARTS how often the processes are started again within one allocation.

#SBATCH --job-name=conic_jax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A lost node puts the job back into the queue, and so does the end of its time, below: three minutes before it,
# every process is told to save and stop.
#SBATCH --requeue
#SBATCH --signal=TERM@180

set -uo pipefail

for ((start = 0; start <= ${RESTARTS:-20}; start++)); do
  # If one process ends, the others say so and end by themselves, within --lost_after.
  srun --kill-on-bad-exit=0 --wait=180 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "${PYTHON:-python}" -m conic_jax.main --distributed "$@"
  code=$?
  case "$code" in
    0) exit 0 ;;
    # A mistake in the command, which would come again, or Ctrl-C.
    1 | 2 | 130) exit "$code" ;;
    # All saved and stopped at the end of the allocation.
    143) exec scontrol requeue "$SLURM_JOB_ID" ;;
  esac
  # 75: another process was lost; 137 and others: a process was killed or crashed.
  echo "The processes ended with $code; they start again and go on from the last checkpoint." >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
