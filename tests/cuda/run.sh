#!/bin/bash
# Builds the decode kernels for the GPU at hand, then runs their tests and their benchmark. Logs go to $OUT (default: build).
# Usage: bash tests/cuda/run.sh [test] [bench] [tune] [layers] [memcheck]   (default: test bench)
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-build-cuda}
bin=${BIN:-/tmp/minicpmo-cuda}
mkdir -p "$out" "$bin"
arch=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)}
flags=(-std=c++20 -O3 "-arch=sm_${arch:-90}" -lineinfo -Xcompiler -Wall,-Wextra -Ielements -Itests/cuda)
nvcc "${flags[@]}" -c elements/cuda/decode.cu -o "$bin/decode.o" &
nvcc "${flags[@]}" -c elements/cuda/token_sampling.cu -o "$bin/token_sampling.o" &
nvcc "${flags[@]}" -c tests/cuda/token_sampling_test.cu -o "$bin/token_test.o" &
nvcc "${flags[@]}" -c tests/cuda/decode_kernels_test.cu -o "$bin/test.o" &
nvcc "${flags[@]}" -c tests/cuda/decode_kernels_bench.cu -o "$bin/bench.o" &
nvcc "${flags[@]}" -c tests/cuda/gemv_tuning.cu -o "$bin/tuning.o" &
nvcc "${flags[@]}" -x cu -c elements/engine/sampling.cpp -o "$bin/sampling.o"
wait
nvcc -arch="sm_${arch:-90}" "$bin/test.o" "$bin/decode.o" "$bin/sampling.o" -o "$bin/decode_kernels_test"
nvcc -arch="sm_${arch:-90}" "$bin/token_test.o" "$bin/token_sampling.o" "$bin/sampling.o" -o "$bin/token_sampling_test"
nvcc -arch="sm_${arch:-90}" "$bin/bench.o" "$bin/decode.o" "$bin/token_sampling.o" -o "$bin/decode_kernels_bench"
nvcc -arch="sm_${arch:-90}" "$bin/tuning.o" "$bin/decode.o" -o "$bin/gemv_tuning"
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
    memcheck)
      for tool in memcheck racecheck; do
        for program in "decode_kernels_test small" "token_sampling_test quick"; do
          # shellcheck disable=SC2086
          timeout 280 compute-sanitizer --tool "$tool" "$bin"/$program 2>&1 | tee -a "$out/$tool.txt" || failed=1
        done
      done ;;
    *) echo "unknown: $what" >&2 && exit 2 ;;
  esac
done
exit $failed
