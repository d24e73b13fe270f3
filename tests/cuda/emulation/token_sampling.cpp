// The kernels that draw tokens, and their test, compiled for the emulation.
#include "cuda/token_sampling.cu"
//
#include "token_sampling_test.cu"
