// The kernels, compiled for the emulation.
#include "cuda/decode.cu"
