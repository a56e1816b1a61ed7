#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call under nine minutes: the mixing paths against float64, and a short
# training of every variant at 500m. It needs one CUDA GPU, Python 3.12 with PyTorch, transformers and what they
# bring, and no network. What the machine lacks comes as wheels, collected before on a machine with a network:
#
#   mkdir wheels
#   DS_BUILD_OPS=0 pip wheel deepspeed==0.19.8 --no-deps --no-build-isolation --wheel-dir wheels
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest wheels \
#       hjson pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection typing-extensions \
#       tyro docstring-parser typeguard
#
# (pip wheel needs torch and setuptools installed. A version of pydantic asks for exactly one of pydantic-core, which
# `unzip -p wheels/pydantic-2*.whl '*/METADATA' | grep pydantic-core` tells. Also needed, and mostly there with
# PyTorch and transformers: einops, msgpack, ninja, numpy, packaging, psutil, py-cpuinfo, pyarrow, rich, safetensors,
# sentencepiece, tokenizers, tqdm.)
#
# usage: benchmarks/run_gpu.sh [--wheels DIR] [--data PACKED_FOLDER | --data FILE...] [--tokenizer FILE]
#                              [--out DIR] [--budget SECONDS] [--rehearse]
#
#   --wheels     wheels to install for this call, by default the folder `wheels` beside the checkout, if there is one
#   --data       a packed corpus, or files for tools/pack.py; by default the bundled demo corpus
#   --tokenizer  for files: what tools/pack.py takes
#   --rehearse   the same on a CPU at toy dimensions, in two or three minutes
#
# A part that fails is reported and the others go on; the exit code is 0 if all passed.
set -u
root="$(cd "$(dirname "$0")/.." && pwd)"
wheels="$root/../wheels" tokenizer="" out="$root/benchmarks/results" budget=520 rehearse=0 data=()
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels) wheels="$2"; shift 2 ;;
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
trap 'rm -rf "$work"' EXIT
touch "$work/start"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
status=0 report="" SECONDS=0

left() { echo $((budget - SECONDS)); }

# part NAME LIMIT COMMAND...: run it for so many seconds at most, and note how it went.
part() {
    local name="$1" limit="$2" start="$SECONDS" code=0
    shift 2
    [ "$limit" -gt "$(left)" ] && limit="$(left)"
    [ "$limit" -lt 1 ] && limit=1
    echo "== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" || code=$?
    [ "$code" -eq 124 ] && echo "$name: stopped after $limit s"
    [ "$code" -eq 0 ] || status=1
    report+="| $name | $((SECONDS - start)) | $([ "$code" -eq 0 ] && echo yes || echo "NO (exit code $code)") |"$'\n'
    return "$code"
}

if compgen -G "$wheels/*.whl" > /dev/null; then
    export PYTHONPATH="$work/site:$PYTHONPATH"
    part install 120 python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
        --target "$work/site" "$wheels"/*.whl
else
    echo "== no wheels to install"
fi
part imports 120 python3 -c '
import deepspeed, torch, transformers, tyro
import deconattn.train.command_line, deconattn.train.engine
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "transformers", transformers.__version__, gpu)
' || true

ops=() train=()
if [ "$rehearse" -eq 1 ]; then
    export CUDA_VISIBLE_DEVICES=
    ops=(--device cpu --rows 1 --length 150 --heads 2 --head-dim 16 --vocab-size 300)
    ops+=(--timed-rows 1 --timed-length 128 --repeats 2)
    train=(--size tiny --seq-len 64 --batch-size 4 --steps 24 --launched-steps 24)
fi

corpus="$work/corpus"
if [ "${#data[@]}" -eq 1 ] && [ -f "${data[0]}/manifest.json" ]; then
    corpus="${data[0]}"
else
    [ "${#data[@]}" -eq 0 ] && data=("$root/deconattn/data/demo/shakespeare.jsonl") && tokenizer="train:2048"
    part pack 120 python3 "$root/tools/pack.py" "${data[@]}" --tokenizer "$tokenizer" --out "$corpus" \
        --val-fraction 0.05 || true
fi
part ops 120 python3 "$root/benchmarks/gpu_ops.py" --out "$out" "${ops[@]}" || true
seconds=$(($(left) - 15))
part train "$(left)" python3 "$root/benchmarks/gpu_train.py" --data "$corpus" --seconds "$seconds" --out "$out" \
    "${train[@]}" || true

{
    printf '| part | seconds | passed |\n| --- | ---: | ---: |\n%s' "$report"
    for name in gpu_ops gpu_train; do
        [ "$out/$name.md" -nt "$work/start" ] && printf '\n%s\n\n' "$name" && cat "$out/$name.md"
    done
} > "$out/gpu.md"
echo "== $SECONDS s in all"
cat "$out/gpu.md"
exit "$status"
