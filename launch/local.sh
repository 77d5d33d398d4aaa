#!/usr/bin/env bash
# Runs an experiment on this machine: CPU, GPUs or a TPU VM, whatever is there.
#
#   ./launch/local.sh configs/quickstart.py [a.b=3 ...]
#
# Needs python3 >= 3.11 with venv. The first call makes .venv and installs into it.
# JAXLOOP_PYTHON=COMMAND chooses the interpreter, JAXLOOP_EXTRA=cpu|cuda|tpu the device.
set -euo pipefail

started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source=launch/common.sh
. launch/common.sh

usage() { sed -n '2,7s/^# \{0,1\}//p' launch/local.sh; }

case ${1:-} in
    "")
        usage >&2
        die "name a config file, for example configs/quickstart.py"
        ;;
    -h | --help)
        usage
        exit 0
        ;;
esac

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

case ${JAXLOOP_EXTRA:-} in
    cuda | tpu) device=$JAXLOOP_EXTRA extra=$JAXLOOP_EXTRA ;;
    cpu) device=CPU extra="" ;;
    "")
        if has_tpu; then
            device=TPU extra=tpu
        elif command -v nvidia-smi > /dev/null 2>&1 && nvidia-smi -L > /dev/null 2>&1; then
            device="$(nvidia-smi -L | head -n 1 | sed 's/ (UUID.*//')" extra=cuda
        else
            device=CPU extra=""
        fi
        ;;
    *) die "JAXLOOP_EXTRA=$JAXLOOP_EXTRA is none of cpu, cuda, tpu" ;;
esac

python=$(find_python) || die "no Python 3.11 or newer with venv was found." \
    "Install one (Debian: apt install python3 python3-venv) or name it: JAXLOOP_PYTHON=/path/to/python3"
say "found $("$python" --version 2>&1) ($python); device: $device"
ensure_venv .venv "$python" "$extra"

cd "$started_in"
exec "$root/.venv/bin/jaxloop" run "$config" "$@"
