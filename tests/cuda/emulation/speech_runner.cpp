// The runner, compiled for the emulation.
#include "cuda/speech_runner.cu"
