#!/usr/bin/env bash
# Measures this crate's CPU backend, PyTorch and oneDNN in turns, pass by pass and shape by shape, and
# writes a report: a machine that others share is not as fast in one minute as in the next, and so
# is as fast for one library as for the others.
#
#   benches/peers/in_turns.sh NAME [REPORT OPTION...]
#
# NAME is the machine's, a folder in benches/results. PYTHON names a python3 with PyTorch, and ONEDNN
# the program that onednn_bn.cpp becomes; whatever is missing is left out. ROUNDS says how often all of
# it is measured (1): of several rounds each library's fastest counts, case by case. A round takes some
# 20 minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?a name for the machine}
shift
python=${PYTHON:-target/venv/bin/python}
onednn=${ONEDNN:-target/onednn_bn}
home=${CARGO_TARGET_DIR:-target}/in-turns
threads=$([ "$(nproc)" -gt 1 ] && echo 1,2 || echo 1)
passes=(inference train_forward train_backward)
rounds=${ROUNDS:-1}
if ! [[ $rounds =~ ^[1-9][0-9]*$ ]]; then
    echo "error: ROUNDS=$rounds: expected a number from 1 on" >&2
    exit 1
fi

# Before hours are spent without them.
has_torch=yes has_onednn=yes
if ! reason=$("$python" -c 'import torch' 2>&1); then
    has_torch=
    printf 'PyTorch is left out:\n%s\n' "$reason" >&2
fi
if ! command -v "$onednn" >/dev/null; then
    has_onednn=
    echo "oneDNN is left out: there is no $onednn" >&2
fi

rm -rf "$home"
cargo bench --bench cpu --no-run
# In the order of the list that the benchmark has.
shapes=$(cargo bench --quiet --bench cpu -- --list | sed -n 's#^copy/[^/]*/[^/]*/\([^/]*\)/.*#\1#p' | awk '!seen[$0]++')
peers=()

ours() {
    local round=$1 pass=$2 shape=$3
    CRITERION_HOME=$home/$round cargo bench --quiet --bench cpu -- --noplot "^$pass/.*/$shape/"
}

in_turn() {
    local round=$1 pass=$2 shape=$3
    if [ -n "$has_torch" ]; then
        peers+=(--peer "$home/$round/torch-$pass-$shape.json")
        "$python" benches/peers/torch_bn.py --device cpu --threads "$threads" \
            --shapes "$shape" --passes "$pass" --output "${peers[-1]}"
    fi
    ours "$round" "$pass" "$shape"
    if [ -n "$has_onednn" ]; then
        peers+=(--peer "$home/$round/onednn-$pass-$shape.json")
        "$onednn" --threads "$threads" --shapes "$shape" --passes "$pass" --output "${peers[-1]}"
    fi
}

for ((round = 1; round <= rounds; round++)); do
    mkdir -p "$home/$round"
    for shape in $shapes; do
        ours "$round" copy "$shape"
        for pass in "${passes[@]}"; do
            in_turn "$round" "$pass" "$shape"
        done
    done
done
cargo run --release --example report -- --device "$name" --criterion "$home" "${peers[@]}" "$@"
