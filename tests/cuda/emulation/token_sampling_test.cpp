// Their test, compiled for the emulation.
#include "token_sampling_test.cu"
