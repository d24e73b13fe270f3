// The runner, compiled for the emulation.
#include "cuda/language_runner.cu"
