#!/usr/bin/env bash
# What the bundle's run.sh decides, beside programs that only pretend: no GPU, nothing is built.
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A bundle, and programs of the system in a folder that comes first on PATH.
bundle=$scratch/bundle system=$scratch/system
mkdir -p "$bundle/bin" "$bundle/peers" "$system"
cp "$root/scripts/gpu-bundle/run.sh" "$bundle/"
printf 'commit abc, with changes\nbuilt on 2026-01-02 by rustc 1.95.0 (abc 2026), glibc 2.36\n' >"$bundle/built-from.txt"

# A program that runs what is read from here.
program() {
    { echo '#!/usr/bin/env bash' && cat; } >"$1"
    chmod +x "$1"
}
program "$bundle/bin/info" <<<'echo "device 0: NVIDIA H100, pretended"'
program "$bundle/bin/gpu" <<'TEXT'
if [ -n "${NO_GPU:-}" ]; then echo 'no GPU: pretended' >&2; fi
if [ "$1" = --list ]; then echo 'forward::f32: test'; fi
TEXT
for name in unit public_cases replay train-tests train; do
    program "$bundle/bin/$name" <<<'echo "run: ${0##*/}"'
done
program "$bundle/bin/bench-cuda" <<'TEXT'
mkdir -p "$CRITERION_HOME"
echo "cuDNN at $(cat "${LD_LIBRARY_PATH%%:*}/libcudnn.so" "${LD_LIBRARY_PATH%%:*}/libcudnn_ops.so.9")"
TEXT
program "$bundle/bin/bench-cpu" <<<'mkdir -p "$CRITERION_HOME"'
program "$bundle/bin/report" <<<'echo "report: $*"'
# Python without a package, or with what PACKAGES and TORCH say.
program "$system/python" <<'TEXT'
case $2 in
    *find_spec*) [ -n "${PACKAGES:-}" ] && echo "$PACKAGES" ;;
    *'import torch'*)
        [ -n "${TORCH:-}" ] && exit
        printf 'Traceback (most recent call last):\nImportError: libpretended.so.1 is missing\n' >&2
        exit 1
        ;;
    *) echo "PyTorch with LD_LIBRARY_PATH=${LD_LIBRARY_PATH-unset}" ;;
esac
TEXT
# More than a pipe holds, the libraries of LISTED first.
program "$system/ldconfig" <<'TEXT'
for path in ${LISTED:-}; do printf '\t%s (libc6,x86-64) => %s\n' "${path##*/}" "$path"; done
for ((i = 0; i < 5000; i++)); do echo "	libother$i.so.1 (libc6,x86-64) => /usr/lib/libother$i.so.1"; done
TEXT
for folder in of_system of_package; do
    mkdir "$scratch/$folder"
    for name in libcudnn libcudnn_ops; do echo -n "$folder " >"$scratch/$folder/$name.so.9"; done
done
echo -n 'of_another_version ' >"$scratch/of_system/libcudnn.so"

failed=0
# Expects an exit status and texts in the output of run.sh, called with variables and arguments; none
# of a text after an exclamation mark.
expect() {
    local status=$1 texts=() text found=0 output
    shift
    while [ "$1" != -- ]; do texts+=("$1") && shift; done
    shift
    output=$(env -u LD_LIBRARY_PATH PATH="$system:$PATH" PYTHON=python RESULTS="$scratch/results" \
        "${variables[@]}" "$bundle/run.sh" "$@" 2>&1) || found=$?
    if [ "$found" != "$status" ]; then complain "status $found, expected $status"; fi
    for text in "${texts[@]}"; do
        case $text in
            '!'*) if [[ $output == *"${text#!}"* ]]; then complain "unexpected: ${text#!}"; fi ;;
            *) if [[ $output != *"$text"* ]]; then complain "missing: $text"; fi ;;
        esac
    done
    if [ "$found" != "$status" ]; then echo "$output"; fi
}
complain() {
    echo "$test: $1" >&2
    failed=1
}

test='no GPU' variables=(NO_GPU=1)
for command in test sanitize bench tune; do
    expect 2 'NO GPU, NOTHING WAS RUN: pretended' '!passed' -- $command
done

test='libraries at the beginning of a long list'
variables=(LISTED='/usr/lib/libcublas.so.12 /usr/lib/libnvrtc.so.12')
expect 0 'run: train-tests' 'all passed' '!LEFT OUT' -- test

test='libraries that are nowhere' variables=(A=)
expect 0 'LEFT OUT: the training example' 'what was run passed, 1 left out' '!all passed' \
    '!run: train' -- test

test='PyTorch by its name' variables=(A=)
expect 1 'ImportError: libpretended.so.1 is missing' 'FAILED: bench torch' '!passed' -- bench torch
variables=(TORCH=1)
expect 0 'PyTorch with LD_LIBRARY_PATH=unset' 'all passed' -- bench torch

test='PyTorch with all else' variables=(A=)
expect 0 'LEFT OUT: PyTorch: ImportError: libpretended.so.1 is missing' 'LEFT OUT: cuDNN' \
    'what was run passed, 2 left out' '!all passed' -- bench

test='cuDNN of one folder' variables=(PACKAGES="$scratch/of_package" TORCH=1)
expect 0 'cuDNN at of_package of_package' 'LD_LIBRARY_PATH=unset' 'all passed' -- bench
variables+=(LISTED="$scratch/of_system/libcudnn.so $scratch/of_system/libcudnn.so.9")
expect 0 'cuDNN at of_system of_system' '!of_another_version' -- bench
variables+=(LD_LIBRARY_PATH="$scratch/nowhere:$scratch/of_package")
expect 0 'cuDNN at of_package of_package' "LD_LIBRARY_PATH=$scratch/nowhere:$scratch/of_package" -- bench

test='what built the programs' variables=(A=)
expect 0 '--commit abc, with changes --rustc rustc 1.95.0 (abc 2026) --output' -- bench cpu

test='ldconfig that is not on PATH'
found=$(PATH=/usr/bin:/bin bash -c "source '$bundle/run.sh' && find_library libc.so.6")
if [ ! -e "$found" ]; then complain "libc.so.6 was not found"; fi

exit $failed
