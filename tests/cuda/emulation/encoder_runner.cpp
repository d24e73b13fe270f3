// The runner, compiled for the emulation.
#include "cuda/encoder_runner.cu"
