#!/usr/bin/env bash
# The order in which benches/peers/in_turns.sh measures, beside programs that only pretend.
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A program that runs what is read from here.
program() {
    { echo '#!/usr/bin/env bash' && cat; } >"$scratch/$1"
    chmod +x "$scratch/$1"
}
program cargo <<'TEXT'
case " $* " in
    *' --list '*) printf '%s: benchmark\n' {copy,inference}/channels-last/f32/{4096x1024,128x100}/none/{1t,2t} ;;
    *' --noplot '*) echo "${CRITERION_HOME#"$CARGO_TARGET_DIR/"} ${*: -1}" >>"$CARGO_TARGET_DIR/order" ;;
    *' report '*) echo "report ${*:6}" >>"$CARGO_TARGET_DIR/order" ;;
esac
TEXT
# Of options it needs a folder that is there for the output.
program onednn <<'TEXT'
touch "${*: -1}" && echo "onednn $4 $6" >>"$CARGO_TARGET_DIR/order"
TEXT
program python <<<'echo "no torch here" && exit 1'

in_turns() {
    env PATH="$scratch:$PATH" CARGO_TARGET_DIR="$scratch" PYTHON=python ONEDNN=onednn "$@" \
        "$root/benches/peers/in_turns.sh" box --cpu pretended 2>&1
}
expected() {
    local round shape pass
    for round in 1 2; do
        for shape in 4096x1024 128x100; do
            echo "in-turns/$round ^copy/.*/$shape/"
            for pass in inference train_forward train_backward; do
                echo "in-turns/$round ^$pass/.*/$shape/"
                echo "onednn $shape $pass"
            done
        done
    done
    echo -n "report --device box --criterion $scratch/in-turns"
    for round in 1 2; do
        for shape in 4096x1024 128x100; do
            for pass in inference train_forward train_backward; do
                echo -n " --peer $scratch/in-turns/$round/onednn-$pass-$shape.json"
            done
        done
    done
    echo ' --cpu pretended'
}

in_turns ROUNDS=2 | grep -xF 'no torch here'
diff <(expected) "$scratch/order"

touch "$scratch/in-turns/kept"
for rounds in 0 x; do
    if in_turns ROUNDS=$rounds | grep -v "ROUNDS=$rounds: expected"; then exit 1; fi
done
ls "$scratch/in-turns/kept"
