// The prefill, compiled for the emulation.
#include "cuda/prefill.cu"
