#!/usr/bin/env bash
# What `make test` comes to on a stranger's machine: tests/fresh.sh [SEED], or `make fresh SEED=7`.
#
# It runs in a fresh clone of HEAD, installed anew, with an empty HOME and TMPDIR, and so without a cache or anything of
# Ray's; without ../shared; with LANG=C and a umask of 077; as nobody, if root starts it; with the files in the order of
# SEED, a random number by default; and beside a process that is always busy. The exit status is that of `make test`. A
# clone in which it failed is kept.
set -euo pipefail
umask 077

seed=${1:-$RANDOM}
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d /tmp/fresh.XXXXXX)
pids=() failed=
ends() {
    for pid in "${pids[@]}"; do
        kill -- "$pid" 2> /dev/null || true
    done
    [[ -n $failed ]] || rm -rf "$place"
}
trap ends EXIT
trap 'exit 130' INT TERM HUP

mkdir "$place/home" "$place/tmp"
git clone --quiet --no-hardlinks "$root" "$place/scdgn" # a hard link would change its owner here too

# Of this environment only how pip comes to packages.
mapfile -t kept < <(env | grep -E '^(PIP_\w+|\w+_(proxy|PROXY)|SSL_CERT_\w+|REQUESTS_CA_BUNDLE)=')
stranger=(env -i LANG=C "HOME=$place/home" "TMPDIR=$place/tmp" "SCDGN_TEST_SEED=$seed" "${kept[@]}" "PATH=$PATH")
if [[ $EUID == 0 ]]; then
    nobody=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups "${stranger[@]}")
    nobody+=("PATH=/usr/local/bin:/usr/bin:/bin") # a Python in root's home is out of reach
    if "${nobody[@]}" python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then
        chown -R nobody: "$place"
        stranger=("${nobody[@]}")
    else
        echo "no Python that nobody may use: going on as root"
    fi
fi

while kill -0 $$; do :; done 2> /dev/null & # even if this script is killed, not for ever
pids+=($!)

makes() {
    local start=$SECONDS status=0
    set -m # a group of its own, so that all of it can be ended
    "${stranger[@]}" make -C "$place/scdgn" "$1" < /dev/null &
    set +m
    pids+=("-$!")
    wait $! || status=$? failed=$place
    echo "make $1: status $status after $((SECONDS - start)) s"
    return "$status"
}

echo "seed $seed, in $place"
cd "$place"
makes install
du -sh "$place/scdgn/.venv"
status=0
makes test || status=$?
echo "seed $seed; left in HOME and TMPDIR:"
find "$place/home" "$place/tmp" -mindepth 1 -maxdepth 2 ! -path "$place/home/.cache" ! -path "*/pip" -printf '%P\n'
exit "$status"
