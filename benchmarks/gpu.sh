#!/bin/bash
# Everything that a lent GPU is to say, in under eight minutes; what is done is not done again.
#
#     benchmarks/gpu.sh OUT            on a machine with a GPU; PYTHON=... names another Python than `python`
#     SMOKE=1 benchmarks/gpu.sh OUT    a few cells, on whatever there is: does it run?
#
# OUT/PART.log is what a part printed, OUT/PART.row its row of the table: a part that has one is skipped, one that failed or ran
# out of its seconds is begun again by the next call. The table comes at the end, then what the parts printed.
set -u
cd "$(dirname "$0")/.."
out=${1:?give a folder for what is measured}
python=${PYTHON:-python}
mkdir -p "$out"

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$(($2 * patience)) start=$SECONDS
    shift 2
    names+=("$name")
    [ -e "$out/$name.row" ] && return
    timeout "$seconds" "$@" > "$out/$name.log" 2>&1
    local status=$? took=$((SECONDS - start)) said
    said=$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1 | tr '|' '/')
    case $status in
        0) echo "| $name | $took | $said |" > "$out/$name.row" ;;
        124) echo "| $name | $took | cut off; the last line: $said |" > "$out/$name.unfinished" ;;
        *) echo "| $name | $took | failed ($status): $said |" > "$out/$name.unfinished" ;;
    esac
    [ $status = 0 ] && rm -f "$out/$name.unfinished"
}

names=() patience=1
small=() packed=() through=() trials=(16 64 256) search=()
if [ -n "${SMOKE:-}" ]; then
    patience=6
    small=(--cells 300 --genes 200 --rounds 1)
    packed=(--models 2) through=(--epochs 1 --layers 8/4/4 --packs 2 --processes 1)
    trials=(2) search=(--hidden 8 16 --cells 300)
else
    through=(--rounds 1 --layers 64/16/8 --packs 16 64 --processes 4) packed=(--rounds 2)
fi

part tests 45 "$python" -m pytest -n 0 tests/test_gpu.py tests/test_kernels.py
part step 20 "$python" -m benchmarks.step "${small[@]}"
part pack 45 "$python" -m benchmarks.pack "${small[@]}" "${packed[@]}"
part throughput 45 "$python" -m benchmarks.throughput "${small[@]}" "${through[@]}"
seconds=(50 90 170)
for place in "${!trials[@]}"; do
    count=${trials[place]}
    part "search-$count" "${seconds[place]}" "$python" -m benchmarks.search --trials "$count" "${search[@]}"
done

echo "| part | seconds | the last line |"
echo "|---|---:|---|"
missing=0
for name in "${names[@]}"; do
    cat "$out/$name.row" 2> /dev/null || { cat "$out/$name.unfinished"; missing=1; }
done
for name in "${names[@]}"; do printf '\n== %s\n' "$name"; cat "$out/$name.log"; done
exit $missing
