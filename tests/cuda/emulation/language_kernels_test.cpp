// The language model's runner and its test, compiled for the emulation.
#include "cuda/language_runner.cu"
#include "cuda/token_sampling.cu"
//
#include "language_kernels_test.cu"
