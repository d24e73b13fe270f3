// Products of matrices, compiled for the emulation.
#include "cuda/blas.cu"
