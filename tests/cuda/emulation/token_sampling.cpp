// The kernels that draw tokens, compiled for the emulation.
#include "cuda/token_sampling.cu"
