#!/usr/bin/env bash
# Measure this program on one GPU, in under 8 minutes, and print a table: bash scripts/benchmarks/gpu_check.sh
# Each part has a time limit. One that fails prints one line, the others go on, and the exit status is 1.
# Names of parts run these alone. --tiny runs networks of a few channels, on a CPU too, to try the script itself.
set -u

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
parts=(card:15 training:85 memory:30 sampling:80 agreement:50 compiling:110 processes:65 tests:35)  # NAME:SECONDS
tiny=() chosen=()
for word in "$@"; do
    case " ${parts[*]} " in
        *" $word:"*) chosen+=("$word") ;;
        *) [ "$word" = --tiny ] && tiny=(--tiny) || { echo "error: $word: is none of ${parts[*]%:*}, nor --tiny" >&2; exit 2; } ;;
    esac
done
if [ ${#tiny[@]} = 0 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch finds no GPU here; --tiny tries the script on a CPU" >&2
    exit 2
fi

log=$(mktemp) failed=0
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)  # a part that its limit ends would leave half a kernel in the shared one
export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$log" "$TORCHINDUCTOR_CACHE_DIR"' EXIT
for part in "${parts[@]}"; do
    name=${part%:*} limit=${part#*:}
    [ ${#chosen[@]} = 0 ] || [[ " ${chosen[*]} " == *" $name "* ]] || continue
    [ "$name" = card ] || echo "$name"
    {  # the shell's own line about a killed child goes to the log too
        timeout --kill-after=5 "$limit" "$python" "$root/scripts/benchmarks/gpu_check.py" "$name" ${tiny[@]+"${tiny[@]}"}
        status=$?
    } 2>"$log"
    if [ $status != 0 ]; then
        failed=1
        case $status in
            124) why="took longer than $limit s" ;;
            137) why="killed: by the system, or since it went on after its limit of $limit s" ;;
            *) why="status $status: $(grep -v '^ *$' "$log" | tail -n 1)" ;;
        esac
        echo "  $name failed: $why"
    fi
done
exit $failed
