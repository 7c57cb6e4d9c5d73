#!/usr/bin/env bash
# Tests and measures warpnorm on this machine's first NVIDIA GPU; needs neither Rust nor a network.
# README.txt says what each command does.
set -euo pipefail
# As the caller says them, before the folder changes.
results=$(realpath -m -- "${RESULTS:-$(dirname "$0")/results}")
bench_home=${BENCH_HOME:+$(realpath -m -- "$BENCH_HOME")}
cd "$(dirname "$0")"

readonly FAILED=1 NO_GPU=2 NO_TOOL=3
failures=()
python=${PYTHON:-python3}
# Seconds that a step may take; 0 is for ever.
limit=${LIMIT:-0}

usage() {
    cat <<'TEXT'
./run.sh test                 every test, and the public cases in both layouts
./run.sh sanitize [TOOL...]   the tests under compute-sanitizer: memcheck racecheck initcheck synccheck
./run.sh bench [NAME...]      benchmarks (cuda, torch, cpu), and a report on them
./run.sh tune [TEXT]          every plan of the identifiers that contain TEXT, against its prediction
./run.sh train [OPTION...]    the training example
./run.sh info [OPTION...]     driver, devices, kernels, plans
TEXT
}

# Runs a program under a headline and remembers whether it failed, or took too long.
step() {
    local headline=$1 start=$SECONDS status=0
    shift
    printf '\n=== %s: %s\n' "$headline" "$*"
    # Without a limit the program stays in the terminal's process group.
    if [ "$limit" = 0 ]; then
        "$@" || status=$?
    else
        timeout --kill-after 5 "$limit" "$@" || status=$?
        if [ $status -eq 124 ] || [ $status -eq 137 ]; then echo "ended after $limit s"; fi
    fi
    if [ $status -ne 0 ]; then failures+=("$headline"); fi
    printf -- '--- %s: %d s\n' "$headline" $((SECONDS - start))
}

# What a log must say before anything else.
header() {
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ), host: $(uname -n), $(uname -sr)"
    cat built-from.txt
    bin/info | sed -n '/^device/p'
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv || true
    fi
}

# cuDNN, cuBLAS and NVRTC where Python's packages have them, after all else that the loader knows.
find_python_libraries() {
    local found
    found=$("$python" -c '
import glob, importlib.util
roots = importlib.util.find_spec("nvidia").submodule_search_locations
print(":".join(path for root in roots for path in sorted(glob.glob(root + "/*/lib"))))
' 2>/dev/null) || return 0
    if [ -n "$found" ]; then
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$found
    fi
}

# Without a GPU every test is ignored, which must not look like success.
require_gpu() {
    local reason
    reason=$(bin/gpu --list 2>&1 >/dev/null | sed -n 's/^no GPU: //p')
    if [ -n "$reason" ]; then
        printf '\nNO GPU, NOTHING WAS RUN: %s\n' "$reason"
        exit "$NO_GPU"
    fi
}

conclude() {
    if [ ${#failures[@]} -gt 0 ]; then
        printf '\nFAILED: %s\n' "$(IFS=, && echo "${failures[*]}")"
        exit "$FAILED"
    fi
    printf '\nall passed: %d s\n' "$SECONDS"
}

run_test() {
    local group groups
    require_gpu
    limit=${LIMIT:-600}
    groups=$(bin/gpu --list | sed -n 's/::.*//p' | awk '!seen[$0]++')
    if [ -z "$groups" ]; then failures+=('no tests on the GPU are listed'); fi
    for group in $groups; do test_group "$group"; done
    step 'tests within the library' bin/unit
    step 'public cases' env REPLAY_CASES=cases bin/public_cases cuda::
    step 'replay, channels-first' bin/replay --device cuda --layout channels-first cases
    step 'replay, channels-last' bin/replay --device cuda --layout channels-last cases
    if has_library cublas && has_library nvrtc; then
        step 'operations of the training example' bin/train-tests
        step 'training against the CPU' bin/train --device cuda --check-against-cpu
    else
        printf '\ncuBLAS or NVRTC is not here: the training example was not run\n'
    fi
    conclude
}

# A fault of the GPU stays with the process that met it, and fails all its tests from there on: each
# group has a process of its own, and one that fails another, in which one test follows the other.
test_group() {
    local group=$1 before=${#failures[@]}
    step "$group on the GPU" bin/gpu "$group::"
    if [ ${#failures[@]} -gt "$before" ]; then
        step "$group, one by one" env CUDA_LAUNCH_BLOCKING=1 bin/gpu "$group::" --test-threads 1
    fi
}

# Where the loader looks.
has_library() {
    local name=$1 directory directories
    IFS=: read -ra directories <<<"${LD_LIBRARY_PATH:-}"
    for directory in "${directories[@]}"; do
        if compgen -G "$directory/lib$name.so*" >/dev/null; then return 0; fi
    done
    ldconfig -p 2>/dev/null | grep -q "lib$name\.so"
}

sanitizer() {
    local path
    for path in "$(command -v compute-sanitizer || true)" \
        {"${CUDA_HOME:-/nowhere}","${CUDA_PATH:-/nowhere}",/usr/local/cuda}/{bin,compute-sanitizer}/compute-sanitizer; do
        if [ -x "$path" ]; then
            echo "$path"
            return
        fi
    done
}

run_sanitize() {
    require_gpu
    local sanitizer tool tools=(memcheck racecheck initcheck synccheck)
    sanitizer=$(sanitizer)
    if [ -z "$sanitizer" ]; then
        echo 'compute-sanitizer is neither on PATH nor in CUDA_HOME, CUDA_PATH or /usr/local/cuda:'
        echo 'it comes with the CUDA toolkit; on a cluster, load the module of CUDA'
        exit "$NO_TOOL"
    fi
    "$sanitizer" --version
    if [ $# -gt 0 ]; then tools=("$@"); fi
    for tool in "${tools[@]}"; do
        sanitize "$sanitizer" "$tool"
    done
    conclude
}

# Left out are the large tensors, and thousands of calls whose plans must not be refused, as they may
# be where the sanitizer takes registers; but for memcheck also the 16-bit twins of the longest checks.
sanitize() {
    local sanitizer=$1 tool=$2 options=() skipped=(--skip large:: --skip teams::)
    if [ "$tool" = memcheck ]; then
        # A kernel is looked for in one image after the other: CUDA's "not found" is no error here.
        options=(--report-api-errors no)
    else
        local name
        for name in every_epilogue::f16 every_epilogue::bf16 begin_anywhere::f16 operand::bf16; do
            skipped+=(--skip "$name")
        done
    fi
    step "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "${options[@]}" \
        bin/gpu --test-threads 1 "${skipped[@]}" ${SANITIZE_FILTER:+"$SANITIZE_FILTER"}
}

# The GPU's part comes first: where its time is short, the rest may be cut off.
run_bench() {
    local name names=("$@") home=${bench_home:-$results/$stamp-bench} filter=${BENCH_FILTER:-}
    if [ ${#names[@]} -eq 0 ]; then names=(cuda torch cpu); fi
    mkdir -p "$home"
    for name in "${names[@]}"; do
        case $name in
            torch) bench_torch "$home" "$filter" ;;
            *)
                if [ "$name" = cuda ]; then require_gpu; fi
                step "bench $name" env CRITERION_HOME="$home/criterion" "bin/bench-$name" --bench \
                    ${filter:+"$filter"}
                ;;
        esac
    done
    # Peers alone are compared with nothing.
    if [ -d "$home/criterion" ]; then report "$home"; fi
    conclude
}

bench_torch() {
    local home=$1 filter=$2 options
    if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        printf '\nPyTorch with CUDA is not here: not measured\n'
        return
    fi
    read -ra options <<<"${TORCH_OPTIONS:---ways native,cudnn --step}"
    step 'bench torch' "$python" peers/torch_bn.py --device cuda "${options[@]}" \
        --filter "$filter" --keep --output "$home/torch.json"
}

# On all that is in a folder, also of earlier runs.
report() {
    local peers=()
    if [ -e "$1/torch.json" ]; then peers=(--peer "$1/torch.json"); fi
    step report bin/report --device "$(device_name)" --criterion "$1/criterion" "${peers[@]}" \
        --commit "$(sed -n 's/^commit //p' built-from.txt)" --output "$1"
}

# The first GPU's, as a folder's: NVIDIA-H100-80GB-HBM3.
device_name() {
    local name
    name=$(bin/info | sed -n 's/^device 0: \([^,]*\),.*/\1/p' | tr -c 'A-Za-z0-9.\n' -)
    echo "${name:-cpu}"
}

run_tune() {
    require_gpu
    step tune bin/bench-tune --bench "$@"
    conclude
}

run_train() {
    step train bin/train --output "$results/$stamp-train" "$@"
    conclude
}

run_info() {
    step info bin/info "$@"
    conclude
}

command=${1:-}
case $command in
    test | sanitize | bench | tune | train | info) shift ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 64 ;;
esac

run() {
    find_python_libraries
    header
    case $command in
        test) run_test ;;
        sanitize) run_sanitize "$@" ;;
        bench) run_bench "$@" ;;
        tune) run_tune "$@" ;;
        train) run_train "$@" ;;
        info) run_info "$@" ;;
    esac
}

stamp=$(date -u +%Y%m%dT%H%M%SZ)
log=$results/$stamp-$command.log
mkdir -p "$results"
status=0
run "$@" 2>&1 | tee "$log" || status=${PIPESTATUS[0]}
echo "log: $log"
exit "$status"
