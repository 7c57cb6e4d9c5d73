#!/usr/bin/env bash
# Packs what a machine with an NVIDIA GPU needs to test and measure this crate without Rust and
# without a network into one folder (default: target/gpu-bundle, which is replaced).
#
#   scripts/gpu-bundle.sh [FOLDER]
#
# Needs Rust, a C++ compiler with binutils, git, and NVRTC (docs/kernels.md says where it is looked
# for); no GPU.
# WARPNORM_CUDA_ARCHS narrows what the kernels are compiled for.
set -euo pipefail
root=$(dirname "$(realpath "$0")")/..
bundle=$(realpath -m -- "${1:-${CARGO_TARGET_DIR:-$root/target}/gpu-bundle}")
cd "$root"
# Only ever a bundle is replaced.
if [ -e "$bundle" ] && [ ! -e "$bundle/built-from.txt" ] && [ -n "$(ls -A "$bundle")" ]; then
    echo "error: $bundle is there and is no bundle" >&2
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Without kernels a GPU machine would need NVRTC.
export WARPNORM_REQUIRE_CUDA=${WARPNORM_REQUIRE_CUDA-1}

# Runs cargo and puts down what it built, a line for each program: kind, name, path.
build() {
    cargo "$@" --locked --message-format=json-render-diagnostics >"$scratch/messages"
    local target='"target":{"kind":\["\([a-z-]*\)"\].*"name":"\([^"]*\)","src_path"'
    sed -n "s/^{\"reason\":\"compiler-artifact\".*$target.*\"executable\":\"\([^\"]*\)\".*/\1 \2 \3/p" \
        "$scratch/messages" >>"$scratch/programs"
}

# Takes a program along: its kind and name as cargo has them, its name in the bundle.
take() {
    local path
    path=$(sed -n "s/^$1 $2 //p" "$scratch/programs" | tail -n 1)
    if [ -z "$path" ]; then
        echo "error: cargo has built no $1 named $2" >&2
        return 1
    fi
    strip --strip-all -o "$bundle/bin/$3" "$path"
}

state() {
    echo "commit $(git rev-parse HEAD)$(git diff --quiet HEAD -- || echo ', with changes')"
    echo "built on $(date -u +%Y-%m-%d) by $(rustc --version), $(getconf GNU_LIBC_VERSION)"
    "$bundle/bin/info" | sed -n '/^kernels: /p'
}

build build --release -p warpnorm -p replay --example info --example report --example train \
    --bin replay
build test --release --no-run -p warpnorm -p replay -p gpu --lib --test gpu --test public_cases \
    --test train
build bench --no-run -p warpnorm --benches

rm -rf "$bundle"
mkdir -p "$bundle/bin" "$bundle/peers"
take example info info
take example report report
take example train train
take bin replay replay
take test gpu gpu
take test public_cases public_cases
take test train train-tests
take lib warpnorm unit
while read -r kind name _; do
    if [ "$kind" = bench ]; then take bench "$name" "bench-$name"; fi
done <"$scratch/programs"
cp -r tests/replay/cases "$bundle/cases"
cp benches/peers/*.py benches/peers/gpu-ids.txt "$bundle/peers/"
cp scripts/gpu-bundle/run.sh scripts/gpu-bundle/README.txt LICENSE-* "$bundle/"
state >"$bundle/built-from.txt"

cat "$bundle/built-from.txt"
du -sh "$bundle"
