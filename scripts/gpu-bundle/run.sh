#!/usr/bin/env bash
# Tests and measures warpnorm on this machine's first NVIDIA GPU; needs neither Rust nor a network.
# README.txt says what each command does.
set -euo pipefail
# As the caller says them, before the folder changes.
results=$(realpath -m -- "${RESULTS:-$(dirname "$0")/results}")
bench_home=${BENCH_HOME:+$(realpath -m -- "$BENCH_HOME")}
# PyTorch brings its own libraries: those that are chosen here are not for it.
as_called=(env -u LD_LIBRARY_PATH)
if [ -n "${LD_LIBRARY_PATH:-}" ]; then as_called=(env "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"); fi
cd "$(dirname "$0")"

readonly FAILED=1 NO_GPU=2 NO_TOOL=3
failures=()
# What was asked for with the rest and could not be done here, and why.
left_out=()
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

# Of a library's name or its beginning the first file in folders, which colons part.
in_folders() {
    local name=$1 folder folders path
    IFS=: read -ra folders <<<"$2"
    for folder in "${folders[@]}"; do
        for path in "${folder:-.}/$name"*; do
            if [ -e "$path" ]; then
                echo "$path"
                return
            fi
        done
    done
}

# Everything that the loader knows without LD_LIBRARY_PATH. Debian has ldconfig on root's PATH only.
loader_cache() {
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true
}

# Where the loader finds a library: on LD_LIBRARY_PATH, then in its cache.
find_library() {
    local path
    path=$(in_folders "$1" "${LD_LIBRARY_PATH:-}")
    if [ -z "$path" ]; then
        # Read to its end: a program that is cut off fails, and with it the pipe.
        path=$(loader_cache | awk -v name="$1" 'index($1, name) == 1 && !path { path = $NF } END { print path }')
    fi
    echo "$path"
}

has_library() {
    [ -n "$(find_library "lib$1.so")" ]
}

# cuBLAS, NVRTC and cuDNN where the loader finds them; where it does not, in Python's packages. The
# loader looks at LD_LIBRARY_PATH before its cache: nothing is added that the cache has.
choose_libraries() {
    local folders name path
    folders=$("$python" -c '
import glob, importlib.util
roots = importlib.util.find_spec("nvidia").submodule_search_locations
print(":".join(path for root in roots for path in sorted(glob.glob(root + "/*/lib"))))
' 2>/dev/null) || folders=
    cudnn=$(find_library libcudnn.so.9)
    cudnn=${cudnn:-$(in_folders libcudnn.so.9 "$folders")}
    for name in cublas nvrtc; do
        path=$(in_folders "lib$name.so" "$folders")
        if [ -n "$path" ] && ! has_library "$name"; then
            export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${path%/*}
        fi
    done
    if [ -n "$cudnn" ]; then link_cudnn "$(realpath -- "${cudnn%/*}")" "${cudnn##*/}"; fi
}

# cuDNN is many libraries, which load each other by name, and the benchmark asks for libcudnn.so before
# it asks for libcudnn.so.9. A folder before all others, with links to all of one version, keeps
# another that the machine has out of it.
link_cudnn() {
    mkdir "$scratch/cudnn"
    ln -s "$1"/libcudnn*.so.9* "$scratch/cudnn/"
    ln -s "$1/$2" "$scratch/cudnn/libcudnn.so"
    export LD_LIBRARY_PATH=$scratch/cudnn${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
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
    if [ ${#left_out[@]} -gt 0 ]; then printf '\nLEFT OUT: %s' "${left_out[@]}" && echo; fi
    if [ ${#failures[@]} -gt 0 ]; then
        printf '\nFAILED: %s\n' "$(IFS=, && echo "${failures[*]}")"
        exit "$FAILED"
    fi
    if [ ${#left_out[@]} -gt 0 ]; then
        printf '\nwhat was run passed, %d left out: %d s\n' ${#left_out[@]} "$SECONDS"
    else
        printf '\nall passed: %d s\n' "$SECONDS"
    fi
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
        left_out+=('the training example: cuBLAS or NVRTC is not here')
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
            torch) bench_torch "$home" "$filter" "$*" ;;
            *)
                if [ "$name" = cuda ]; then
                    require_gpu
                    if [ -z "$cudnn" ]; then left_out+=('cuDNN: libcudnn.so.9 is not here'); fi
                fi
                step "bench $name" env CRITERION_HOME="$home/criterion" "bin/bench-$name" --bench \
                    ${filter:+"$filter"}
                ;;
        esac
    done
    # Peers alone are compared with nothing.
    if [ -d "$home/criterion" ]; then report "$home"; fi
    conclude
}

# Asked for by its name it must be there.
bench_torch() {
    local home=$1 filter=$2 asked_for=$3 reason options
    if ! reason=$("${as_called[@]}" "$python" -c 'import torch, sys
sys.exit(None if torch.cuda.is_available() else "torch.cuda.is_available() is False")' 2>&1); then
        printf '\nPyTorch with CUDA is not here:\n%s\n' "$reason"
        if [ -n "$asked_for" ]; then
            failures+=('bench torch: PyTorch with CUDA is not here')
        else
            left_out+=("PyTorch: ${reason##*$'\n'}")
        fi
        return
    fi
    read -ra options <<<"${TORCH_OPTIONS:---ways native,cudnn --step}"
    step 'bench torch' "${as_called[@]}" "$python" peers/torch_bn.py --device cuda "${options[@]}" \
        --filter "$filter" --keep --output "$home/torch.json"
}

# On all that is in a folder, also of earlier runs.
report() {
    local peers=() rustc
    if [ -e "$1/torch.json" ]; then peers=(--peer "$1/torch.json"); fi
    rustc=$(sed -n 's/^built on .* by \(rustc .*\), [^,]*$/\1/p' built-from.txt)
    step report bin/report --device "$(device_name)" --criterion "$1/criterion" "${peers[@]}" \
        --commit "$(sed -n 's/^commit //p' built-from.txt)" ${rustc:+--rustc "$rustc"} --output "$1"
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

# Its test reads the functions alone.
if [ "${BASH_SOURCE[0]}" != "$0" ]; then return; fi

command=${1:-}
case $command in
    test | sanitize | bench | tune | train | info) shift ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 64 ;;
esac

run() {
    choose_libraries
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
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
status=0
run "$@" 2>&1 | tee "$log" || status=${PIPESTATUS[0]}
echo "log: $log"
exit "$status"
