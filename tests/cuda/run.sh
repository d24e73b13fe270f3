#!/bin/bash
# Builds the decode kernels for the GPU at hand, then runs their tests and their benchmark. Logs go to $OUT (default: build-cuda).
# Usage: bash tests/cuda/run.sh [test] [bench] [tune] [layers]   (default: test bench)
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-build-cuda}
bin=${BIN:-/tmp/minicpmo-cuda}
mkdir -p "$out" "$bin"
arch=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)}
flags=(-std=c++20 -O3 "-arch=sm_${arch:-90}" -lineinfo -Xcompiler -Wall,-Wextra -Ielements -Itests/cuda)
pids=()
for source in elements/cuda/{decode,token_sampling}.cu elements/engine/sampling.cpp elements/llm/token_choice.cpp \
  tests/cuda/{decode_kernels_test,token_sampling_test,decode_kernels_bench,gemv_tuning}.cu; do
  name=${source##*/}
  nvcc "${flags[@]}" -x cu -c "$source" -o "$bin/${name%.*}.o" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
for program in decode_kernels_test token_sampling_test decode_kernels_bench gemv_tuning; do
  nvcc -arch="sm_${arch:-90}" "$bin/$program.o" "$bin"/{decode,token_sampling,sampling,token_choice}.o -o "$bin/$program"
done
failed=0
for what in ${*:-test bench}; do
  case $what in
    bench) timeout 280 "$bin/decode_kernels_bench" 2>&1 | tee "$out/bench.txt" || failed=1 ;;
    test)
      for program in decode_kernels_test token_sampling_test; do
        timeout 280 "$bin/$program" 2>&1 | tee "$out/$program.txt" || failed=1
      done ;;
    tune) timeout 200 "$bin/gemv_tuning" 2>&1 | tee "$out/tune.txt" || failed=1 ;;
    layers) timeout 200 "$bin/gemv_tuning" layers 2>&1 | tee "$out/layers.txt" || failed=1 ;;
    *) echo "unknown: $what" >&2 && exit 2 ;;
  esac
done
exit $failed
