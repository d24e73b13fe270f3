// The runner, its kernels and the products around them, compiled for the emulation.
#include "cuda/blas.cu"
//
#include "cuda/encoder_runner.cu"
