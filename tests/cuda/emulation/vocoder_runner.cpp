// The vocoder's runner, compiled for the emulation.
#include "cuda/vocoder_runner.cu"
