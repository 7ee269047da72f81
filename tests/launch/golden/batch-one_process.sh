#!/usr/bin/env bash
# Written by `python -m launch submit`. To start the run again as it was submitted: sbatch this file.
#SBATCH --job-name=telco
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@120
#SBATCH --output=<CWD>/runs/telco/logs/slurm-%j.out
#SBATCH --chdir=<CWD>
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

export PATH=<BIN>:"$PATH"
container=()
srun_options=()
# the code as it was when this was submitted, and not what the working directory holds by then
export PYTHONSAFEPATH=1 PYTHONPATH=<CWD>/runs/telco/launch/code
set -- --cpu --lead=120 -- --config <CWD>/runs/telco/launch/config.yaml run.dir=<CWD>/runs/telco

# One agent per node, with all of the node's devices: what sbatch was told of tasks is for the agents to read,
# and not for srun, which would start that many of them.
agents=(env -u SLURM_NTASKS -u SLURM_NPROCS -u SLURM_NTASKS_PER_NODE -u SLURM_TASKS_PER_NODE
  -u SLURM_CPUS_PER_TASK -u SLURM_GPUS_PER_TASK -u SLURM_TRES_PER_TASK
  srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 --cpu-bind=none)
if [ "${SLURM_HET_SIZE:-0}" -gt 0 ]; then agents+=(--het-group="0-$((SLURM_HET_SIZE - 1))"); fi

# One task of an array by a name of its own: the last task's id is the whole array's.
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-${SLURM_JOB_ID:-}}
state() { squeue -h -j "$id" -o %T 2>/dev/null | head -n 1; }

# What the nodes say of themselves, judged here: whatever is wrong (2) is shown with its mend, and ends the job.
doctor() {
  timeout 120 "${agents[@]}" "${srun_options[@]}" "${container[@]}" python -m launch.doctor_node "$plan" |
    "${container[@]}" python -m launch doctor --plan "$plan" --reports --quick
}
if [ "${SLURM_JOB_NUM_NODES:-1}" -eq 1 ]; then LAUNCH_DOCTOR=0; fi # LAUNCH_DOCTOR=0 switches it off elsewhere, too

while plan=$("${container[@]}" python -m launch.job begin "$@"); do
  if [ "${LAUNCH_DOCTOR:-1}" != 0 ]; then
    doctor || [ $? -ne 2 ] || exit 2
    LAUNCH_DOCTOR=0 # once in a job's life is enough
  fi
  "${agents[@]}" "${srun_options[@]}" "${container[@]}" python -m launch.agent "$plan"
  LAUNCH_JOB_STATE=$(state) "${container[@]}" python -m launch.job end "$plan"
  code=$?
  case $code in
    100) continue ;;  # the world broke: once more, on fresh addresses
    101) # saved; the requeue ends this shell. A busy controller is asked again, unless the job was cancelled meanwhile
      for _ in 1 2 3 4 5; do
        if scontrol requeue "$id"; then sleep 60; break; fi
        if [ "$(state)" = RUNNING ]; then sleep 5; else break; fi
      done
      exit 75 ;;
    *) exit $code ;;
  esac
done
exit 2
