// The test of the language model's runner, compiled for the emulation.
#include "language_kernels_test.cu"
