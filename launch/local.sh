#!/usr/bin/env bash
# Runs an experiment on this machine: CPU, GPUs or a TPU VM, whatever is there.
#
#   ./launch/local.sh [--devices N | --simulate N] configs/quickstart.py [a.b=3 ...]
#
#   --devices N    only the first N of the GPUs
#   --simulate N   the CPU as N devices: to try a mesh before there is a machine for it
#
# Needs python3 >= 3.11 with venv. The first call makes .venv and installs into it.
# JAXLOOP_PYTHON=COMMAND chooses the interpreter, JAXLOOP_EXTRA=cpu|cuda|cuda13|tpu the
# device (cuda: CUDA 12); else the driver that is found decides.
set -euo pipefail

started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source=launch/common.sh
. launch/common.sh

usage() { sed -n '2,11s/^# \{0,1\}//p' launch/local.sh; }

devices="" simulate=""
while [ $# -gt 0 ]; do
    case $1 in
        --devices | --simulate)
            case ${2:-} in
                "" | *[!0-9]* | 0*) die "$1 takes a number of devices, not '${2:-}'" ;;
            esac
            [ "$1" = --devices ] && devices=$2 || simulate=$2
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) die "there is no option $1 (options of the run come after the config)" ;;
        *) break ;;
    esac
done
if [ $# = 0 ]; then
    usage >&2
    die "name a config file, for example configs/quickstart.py"
fi
[ -z "$devices" ] || [ -z "$simulate" ] || die "--devices and --simulate exclude each other"

# The config may be given relative to where the caller is or to the repository.
config=$1
shift
file=${config%%:*}
if [ -f "$started_in/$file" ]; then
    [ "${file#/}" != "$file" ] || config=$started_in/$config
elif [ -f "$root/$file" ]; then
    config=$root/$config
elif [ ! -f "$file" ]; then
    die "there is no config $file (looked in $started_in and $root)"
fi

gpus() { nvidia-smi -L 2> /dev/null; }

extra="" kind=${JAXLOOP_EXTRA:-}
[ -z "$simulate" ] || kind=cpu
if [ -z "$kind" ]; then
    if has_tpu; then
        kind=tpu
    elif command -v nvidia-smi > /dev/null 2>&1 && gpus > /dev/null; then
        kind=$(cuda_extra) || die "$kind. JAXLOOP_EXTRA=cpu does without the GPU"
    else
        kind=cpu
    fi
fi
case $kind in
    cpu) found=CPU ;;
    tpu) found=TPU extra=tpu ;;
    cuda | cuda12 | cuda13)
        extra=${kind%12} count=0 first=""
        while read -r line; do
            count=$((count + 1))
            first=${first:-${line%% (UUID*}}
        done < <(gpus || true)
        cuda="CUDA ${kind#cuda}"
        [ "$extra" = cuda13 ] || cuda="CUDA 12"
        found="$count x ${first#GPU 0: }, $cuda"
        ;;
    *) die "JAXLOOP_EXTRA=$kind is none of cpu, cuda, cuda13, tpu" ;;
esac
if [ -n "$devices" ]; then
    case $kind in
        cuda*) ;;
        cpu) die "--devices: a CPU is one device; --simulate $devices makes $devices of it" ;;
        *) die "--devices: the chips of a TPU VM are used together; give a mesh to cut them" ;;
    esac
    [ "$devices" -le "$count" ] || die "--devices $devices: there are $count GPUs"
    CUDA_VISIBLE_DEVICES=$(first_numbers "$devices")
    export CUDA_VISIBLE_DEVICES
    found="$found; using GPU $CUDA_VISIBLE_DEVICES"
elif [ -n "$simulate" ]; then
    export JAX_PLATFORMS=cpu
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$simulate"
    found="CPU as $simulate devices"
fi

python=$(find_python) || die "no Python 3.11 or newer with venv was found." \
    "Install one (Debian: apt install python3 python3-venv) or name it: JAXLOOP_PYTHON=/path/to/python3"
say "found $("$python" --version 2>&1) ($python); device: $found"
ensure_venv .venv "$python" "$extra"

cd "$started_in"
exec "$root/.venv/bin/jaxloop" run "$config" "$@"
