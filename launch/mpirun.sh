#!/usr/bin/env bash
# An experiment as processes that Open MPI starts: where there is no SLURM.
#
#   ./launch/mpirun.sh -np 8 [--hostfile HOSTS ...] -- configs/gsm8k_grpo.py out=DIR [a.b=3 ...]
#
# Before `--` stand options of mpirun, behind it what follows `jaxloop run`. The first
# process must be on this host (let it be the first of the hosts); there are no addresses
# to fill in. JAX_COORDINATOR_PORT=8476 chooses its port. The repository and DIR must lie
# where all hosts see them. A process a GPU: mpirun's `-npernode` is the number of a
# host's GPUs. SIGTERM saves; a lost process ends all with exit code 75: the same command
# goes on from the newest checkpoint.
#
# Needs .venv here, as the first call of launch/local.sh makes it (--dry-run will do).
set -euo pipefail

started_in=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

usage() { sed -n '2,13s/^# \{0,1\}//p' "$root/launch/mpirun.sh"; }

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
    esac
    options+=("$1")
    shift
done
if [ $# -lt 2 ]; then
    usage >&2
    die "give options of mpirun, --, and a config file"
fi
shift
command -v mpirun > /dev/null 2>&1 || die "mpirun is not there (Debian: apt install openmpi-bin)"
[ -x "$root/.venv/bin/jaxloop" ] || die "$root/.venv is not there: run launch/local.sh CONFIG --dry-run once"

# Open MPI tells each process its number; where the first one is, it tells in a way that
# changes from version to version, so that is given. Its own patience with a process that
# was told to end is one second, too short to save.
port=${JAX_COORDINATOR_PORT:-8476}
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-$(hostname):$port}
export OMPI_MCA_odls_base_sigkill_timeout=600 PRTE_MCA_odls_base_sigkill_timeout=600
cd "$started_in"
# shellcheck disable=SC2016 # the variables are those of the processes
exec mpirun "${options[@]}" -x JAX_COORDINATOR_ADDRESS -x PATH bash -c '
    export JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK
    if command -v nvidia-smi > /dev/null 2>&1; then
        export JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK
    fi
    exec "$@"' bash "$root/.venv/bin/jaxloop" run "$@"
