#!/usr/bin/env bash
# One training on two nodes of a SLURM cluster, four GPUs each: one process a GPU, which find each other by themselves.
#   sbatch scripts/slurm.sh tutorial --batch-size 512 --run-dir /shared/runs/first
# The run folder must be in a file system that all nodes share. Two minutes before the time limit SLURM sends SIGTERM
# (--signal): the training saves and ends, and the job is queued again, to go on from there.
#SBATCH --job-name=lstm-mnist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

run_dir=''
for ((i = 1; i <= $#; i++)); do
  next=$((i + 1))
  case ${!i} in
    --run-dir) run_dir=${!next} ;;
    --run-dir=*) run_dir=${!i#*=} ;;
  esac
done
[ -n "$run_dir" ] || { echo "give --run-dir, a folder that all nodes share"; exit 2; }

if [ -e "$run_dir/config.json" ] || [ -e "$run_dir/population.json" ]; then words=(--resume "$run_dir"); else words=("$@"); fi
srun .venv/bin/lstm-mnist train "${words[@]}" && exit
code=$?
if [ $code -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi # 128 + SIGTERM
exit $code
