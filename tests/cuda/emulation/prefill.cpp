// Prefill and its products, compiled for the emulation.
#include "cuda/blas.cu"
#include "cuda/prefill.cu"
