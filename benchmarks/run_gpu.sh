#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call under nine minutes: the mixing operations against float64 and
# against their peers, training throughput beside transformers and torchtitan, whether every variant learns, and
# generation beside transformers (without decoding/decode.py's --static, which compiles for minutes). It needs one CUDA
# GPU, a C compiler (Triton's), Python 3.12 with PyTorch, transformers and what they bring, and no network. What the
# machine lacks comes as wheels, collected before on a machine with a network:
#
#   mkdir wheels
#   DS_BUILD_OPS=0 pip wheel deepspeed==0.19.8 --no-deps --no-build-isolation --wheel-dir wheels
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest wheels \
#       hjson pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection typing-extensions \
#       orjson tyro docstring-parser typeguard pytest pluggy iniconfig pygments
#   pip download --no-deps --dest wheels flash-linear-attention fla-core       # optional: peers of kernels/operations.py
#   git clone --depth 1 --branch v0.2.2 https://github.com/pytorch/torchtitan  # optional: a peer of training/step.py
#
# (pip wheel needs torch and setuptools installed. A version of pydantic asks for exactly one of pydantic-core, which
# `unzip -p wheels/pydantic-2*.whl '*/METADATA' | grep pydantic-core` tells. Also needed, and mostly there with
# PyTorch and transformers: einops, msgpack, ninja, numpy, packaging, psutil, py-cpuinfo, pyarrow, rich, safetensors,
# sentencepiece, tokenizers, tqdm.)
#
# usage: benchmarks/run_gpu.sh [--wheels DIR] [--torchtitan DIR] [--data PACKED_FOLDER | --data FILE...]
#                              [--tokenizer FILE] [--out DIR] [--budget SECONDS] [--rehearse]
#
#   --wheels      wheels to install for this call, by default the folder `wheels` beside the checkout, if there is one
#   --torchtitan  its checkout, by default the folder `torchtitan` in or beside that of the wheels, if there is one
#   --data        a packed corpus, or files for tools/pack.py; by default the bundled demo corpus
#   --tokenizer   for files: what tools/pack.py takes
#   --rehearse    the same on a CPU at toy dimensions, in a few minutes, and the Triton kernels in their interpreter
#
# A part that fails is reported and the others go on; the exit code is 0 if all passed. In --out: a JSON file and a
# table of each benchmark, the output of the tests, and gpu.md with all tables. They are written as the measurements
# come, so that a run that is killed leaves what it has measured.
set -u

# Seconds that each part may take; what one leaves over, the later ones may have.
install_limit=60 imports_limit=60 kernels_limit=115 train_limit=165 tests_limit=60 pack_limit=30 learn_limit=90
decode_limit=60 tune_limit=90
margin=8 # between the time that a benchmark gives itself and the time at which it is stopped

root="$(cd "$(dirname "$0")/.." && pwd)"
wheels="$root/../wheels" torchtitan="" tokenizer="" out="$root/benchmarks/results" budget="" rehearse=0 data=()
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels) wheels="$2"; shift 2 ;;
        --torchtitan) torchtitan="$2"; shift 2 ;;
        --tokenizer) tokenizer="$2"; shift 2 ;;
        --out) out="$2"; shift 2 ;;
        --budget) budget="$2"; shift 2 ;;
        --rehearse) rehearse=1; shift ;;
        --data) shift; while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do data+=("$1"); shift; done ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
done
mkdir -p "$out" || exit 2
out="$(cd "$out" && pwd)"
work="$(mktemp -d)"
touch "$work/begun"
trap 'rm -rf "$work"' EXIT
cd "$root" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TOKENIZERS_PARALLELISM=false TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$work/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}" # shared: what one compiled, the next has
status=0 report="" SECONDS=0

left() { echo $((budget - SECONDS)); }

# limited SECONDS: so many, or what is left of the budget.
limited() { [ "$1" -lt "$(left)" ] && echo "$1" || left; }

# note NAME SECONDS RESULT: a row of the report, which is written anew, so that a run that is cut short has one.
note() {
    report+="| $1 | $2 | $3 |"$'\n'
    {
        printf '| part | seconds | passed |\n| --- | ---: | ---: |\n%s' "$report"
        for table in "$out"/*.md; do
            [ "$table" = "$out/gpu.md" ] && continue
            [ "$table" -nt "$work/begun" ] && printf '\n## %s\n\n' "$(basename "$table" .md)" && cat "$table"
        done
    } > "$out/gpu.md"
}

# part NAME LIMIT COMMAND...: run it for so many seconds at most, and note how it went.
part() {
    local name="$1" limit start="$SECONDS" code=0
    limit="$(limited "$2")"
    shift 2
    if [ "$limit" -lt 5 ]; then
        note "$name" 0 "NO (no time left)"
        status=1
        return 1
    fi
    echo "== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" || code=$?
    [ "$code" -eq 124 ] && echo "$name: stopped after $limit s"
    [ "$code" -eq 0 ] || status=1
    note "$name" $((SECONDS - start)) "$([ "$code" -eq 0 ] && echo yes || echo "NO (exit code $code)")"
    return "$code"
}

# benchmark NAME LIMIT SCRIPT FLAGS...: a part whose script ends by itself before the limit.
benchmark() {
    local name="$1" limit
    limit="$(limited "$2")"
    shift 2
    part "$name" "$limit" python3 "$@" --seconds $((limit > margin ? limit - margin : 1)) --out "$out"
}

device=cuda kernels=() train=() learn=() tune=() tests=()
decode=(--precision bf16 --case-seconds 4)
if [ "$rehearse" -eq 1 ]; then
    export CUDA_VISIBLE_DEVICES=
    budget="${budget:-1200}" kernels_limit=150 train_limit=360 tests_limit=120 learn_limit=150 device=cpu
    kernels=(--rows 1 --lengths 128 --heads 2 --head-dim 16 --vocab-size 300 --repeats 2 --copy-mib 1)
    kernels+=(--matmul-size 64 --check-rows 1 --check-length 150)
    train=(--sizes tiny --layers 2 --seq-len 64 --vocab-size 256 --micro-batch-sizes 2 --warmup-steps 1)
    train+=(--samples 2 --steps-a-sample 1 --variants standard fixedseq --turn-seconds 240)
    learn=(--size tiny --seq-len 64 --batch-size 4 --steps 24 --launched-steps 24)
    decode+=(--size tiny --layers 2 --vocab-size 256 --lengths 16 40 --steps 4 --prompt 8 --new-tokens 4)
    tune=(--rows 1 --lengths 32 --heads 1 --head-dim 16 --repeats 1 --dtypes fp32)
    tests=(--collect-only)
fi

budget="${budget:-520}"

if compgen -G "$wheels/*.whl" > /dev/null; then
    export PYTHONPATH="$work/site:$PYTHONPATH"
    part install "$install_limit" python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
        --no-compile --target "$work/site" "$wheels"/*.whl
else
    echo "== no wheels to install"
fi
part imports "$imports_limit" python3 -c '
import shutil
import deepspeed, torch, transformers, triton, tyro
import deconattn.config.command_line, deconattn.train.engine
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang") or "NO C COMPILER: Triton needs one"
print("torch", torch.__version__, "triton", triton.__version__, "deepspeed", deepspeed.__version__, end=", ")
print("transformers", transformers.__version__, gpu, compiler, sep=", ")
'

benchmark kernels "$kernels_limit" benchmarks/kernels/operations.py --device "$device" "${kernels[@]}"
for folder in "$torchtitan" "$wheels/torchtitan" "$wheels/../torchtitan"; do
    [ -n "$folder" ] && [ -d "$folder" ] && train+=(--torchtitan "$folder") && break
done
benchmark train_step "$train_limit" benchmarks/training/step.py "${train[@]}"

# tests' own defaults ask for pytest-xdist, which need not be there.
if python3 -c 'import pytest' 2> /dev/null; then
    part tests "$tests_limit" python3 -m pytest -q -o addopts= -p no:cacheprovider -m 'not slow' \
        --continue-on-collection-errors --maxfail 20 "${tests[@]}" tests/ops/kernels > "$out/gpu-tests.txt" 2>&1
    tail -n 40 "$out/gpu-tests.txt"
else
    note tests 0 "skipped: pytest is not installed"
fi

corpus="$work/corpus"
if [ "${#data[@]}" -eq 1 ] && [ -f "${data[0]}/manifest.json" ]; then
    corpus="${data[0]}"
else
    [ "${#data[@]}" -eq 0 ] && data=("$root/deconattn/data/demo/shakespeare.jsonl") && tokenizer="train:2048"
    part pack "$pack_limit" python3 "$root/tools/pack.py" "${data[@]}" --tokenizer "$tokenizer" --out "$corpus" \
        --val-fraction 0.05
fi
benchmark train_learn "$learn_limit" benchmarks/training/learn.py --data "$corpus" "${learn[@]}"
benchmark decode "$decode_limit" benchmarks/decoding/decode.py --device "$device" "${decode[@]}"

if [ "$rehearse" -eq 1 ]; then # the benchmark's Triton paths too, in the interpreter
    export TRITON_INTERPRET=1 DECONATTN_BACKEND=triton
    interpreted=(--rows 1 --lengths 32 --heads 1 --head-dim 16 --vocab-size 64 --repeats 1 --dtypes fp32)
    interpreted+=(--check-dtypes fp32 --check-rows 1 --check-length 40 --copy-mib 1 --matmul-size 64)
    part interpreter 300 python3 benchmarks/kernels/operations.py --device cpu "${interpreted[@]}" --out "$work/interpreted"
fi
benchmark tune "$tune_limit" benchmarks/kernels/operations.py --device "$device" --tune "${tune[@]}"

echo "== $SECONDS s in all"
cat "$out/gpu.md"
exit "$status"
